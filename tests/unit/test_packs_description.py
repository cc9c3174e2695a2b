"""Whatever is taken out of a ``pack.toml`` or spoilt in it is told by its place, by an `EngineError` alone."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w

from rtdecode.__main__ import main
from rtdecode.decode.families.distilled_table import DistilledTable
from rtdecode.decode.families.latent_map import LatentsTable
from rtdecode.errors import EngineError
from rtdecode.packs.description import PACK_SCHEMA, StageTable, read_description, write_description
from rtdecode.packs.sealed import seal
from tests.decode_small import tiny_pack
from tests.packs import description, part

Path_ = tuple[str, ...]
FREE = ("report", "sizes")
"""Tables that are a family's own business, or a network's."""


def published() -> dict[str, Any]:
    stage = StageTable(file="a.safetensors", network="prior", sizes={"dim": 3}, inputs={"x": ["batch", 3]}, outputs={})
    made = DistilledTable(teacher="x", guidance_baked_in=1.0, steps=2, skip=1, seed=0)
    latents = LatentsTable(file="l", components=1, pictures=2, trials=3, participants=[0], penalty=1.0, held_out_r2=0.1)
    whole = description(
        stages={"prior": stage}, parts={"prior": part("a.onnx")}, latents=latents, distilled={"prior": made},
        precision="float16", participants=[0, 2], licence="ours",
    )  # fmt: skip
    return dict(msgspec.to_builtins(whole))


PACKS = {
    "tiny": tomllib.loads((tiny_pack().folder / "pack.toml").read_text(encoding="utf-8")),
    "mindeye2": published(),
}


def places(raw: dict[str, Any], above: Path_ = ()) -> Iterator[Path_]:
    for key, value in raw.items():
        yield (*above, key)
        if isinstance(value, dict) and key not in FREE:
            yield from places(value, (*above, key))


CASES = [(name, place) for name, raw in PACKS.items() for place in places(raw)]


def changed(raw: dict[str, Any], place: Path_, value: Any = None) -> dict[str, Any]:
    """Copy in which one place holds another value, or is missing."""
    made = copy.deepcopy(raw)
    table = made
    for key in place[:-1]:
        table = table[key]
    if value is None:
        del table[place[-1]]
    else:
        table[place[-1]] = value
    return made


def read(folder: Path, raw: dict[str, Any]) -> Any:
    (folder / "pack.toml").write_bytes(tomli_w.dumps(raw).encode())
    return read_description(folder)


@pytest.mark.parametrize(("name", "place"), CASES, ids=lambda v: v if isinstance(v, str) else ".".join(v))
def test_what_is_spoilt_is_told_by_its_place(name: str, place: Path_, tmp_path: Path) -> None:
    raw = PACKS[name]
    value: Any = raw
    for key in place:
        value = value[key]
    wrong: Any = {"x": 1} if isinstance(value, list | str) else "spoilt"
    with pytest.raises(EngineError) as told:
        read(tmp_path, changed(raw, place, wrong))
    assert f"pack.toml: {'.'.join(place)}" in str(told.value)
    assert "expected" in str(told.value)


@pytest.mark.parametrize(("name", "place"), CASES, ids=lambda v: v if isinstance(v, str) else ".".join(v))
def test_what_is_missing_is_told_by_its_place_or_not_needed(name: str, place: Path_, tmp_path: Path) -> None:
    told = ""
    try:
        found = read(tmp_path, changed(PACKS[name], place))
    except EngineError as error:
        told = str(error)
    if told:
        missing = "participants" if place == ("kind",) else ".".join(place)  # a pack without a kind is a tiny one
        assert f"pack.toml: {missing}: expected" in told
        return
    assert place[0] not in ("schema", "name")
    assert place not in (("tokens",), ("stages",))
    write_description(tmp_path, found)
    assert read_description(tmp_path) == found


@pytest.mark.parametrize("name", PACKS)
def test_an_unknown_field_is_told(name: str, tmp_path: Path) -> None:
    for place in places(PACKS[name]):
        if place[-1] in ("stages", "parts", "inputs", "outputs", "groups", "distilled", *FREE):
            continue  # their keys are names
        value: Any = PACKS[name]
        for key in place:
            value = value[key]
        if isinstance(value, dict):
            with pytest.raises(EngineError, match="expected no such field") as told:
                read(tmp_path, changed(PACKS[name], (*place, "tempreature"), 1.0))
            assert f"{'.'.join(place)}.tempreature" in str(told.value)
    with pytest.raises(EngineError, match=r"pack\.toml: stagse: expected no such field"):
        read(tmp_path, {**PACKS[name], "stagse": {}})


@pytest.mark.parametrize("name", PACKS)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    found = read(tmp_path, PACKS[name])
    write_description(tmp_path, found)
    assert read_description(tmp_path) == found


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"schema = ", "expected a TOML file"),
        (b"\xff\xfe", "expected a TOML file"),
        (b'schema = "rtdecode.engine-pack/0"', f"schema: expected {PACK_SCHEMA}, got rtdecode.engine-pack/0"),
        (b'name = "x"', f"schema: expected {PACK_SCHEMA}, got None"),
        (f'schema = "{PACK_SCHEMA}"\nkind = "other"'.encode(), r"kind: expected one of .*tiny.*, got other"),
        (f'schema = "{PACK_SCHEMA}"\nkind = 3'.encode(), "kind: expected text, got 3"),
    ],
)
def test_another_file_version_or_kind_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "pack.toml").write_bytes(content)
    with pytest.raises(EngineError, match=told):
        read_description(tmp_path)


@pytest.mark.parametrize("file", ["absent.onnx", "../outside.onnx", "/etc/passwd"])
def test_a_file_outside_the_pack_is_refused_by_the_commands(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = StageTable(file=file, inputs={}, outputs={})
    folder = tmp_path / "pack"
    seal(folder, PACK_SCHEMA, lambda draft: write_description(draft, description(stages={"prior": stage})))
    assert main(["engines", "verify", str(folder)]) == 1
    assert f"pack.toml: stages.prior.file: expected a file of the pack, got '{file}'" in capsys.readouterr().err
    assert main(["engines", "list", str(folder)]) == 2
