"""A sealed copy of a pack holds every file but those left out, and what was changed."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from engines.sealed_copies import exported_files, seal_copy
from rtdecode.packs import EnginePack, open_pack
from rtdecode.packs.description import PACK_SCHEMA, PackDescription, write_description
from rtdecode.packs.sealed import seal
from tests.packs import description, part

FILES = {"kept.bin": b"kept", "captioner/words.json": b"{}", "part.onnx": b"old", "part.onnx.data": b"weights"}


def sealed(folder: Path) -> EnginePack:
    def write(draft: Path) -> None:
        for name, content in FILES.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(content)
        write_description(draft, description("first", parts={"part": part("part.onnx")}))

    seal(folder, PACK_SCHEMA, write)
    (folder / "plans" / "key").mkdir(parents=True)
    (folder / "plans" / "key" / "part.plan").write_bytes(b"plan")
    return open_pack(str(folder))


def test_a_copy_holds_what_was_sealed_and_what_was_changed(tmp_path: Path) -> None:
    pack = sealed(tmp_path / "first")

    def change(draft: Path) -> PackDescription:
        assert (draft / "kept.bin").read_bytes() == b"kept"
        (draft / "captioner" / "words.json").write_bytes(b"[]")
        (draft / "new.bin").write_bytes(b"new")
        return replace(pack.description, name="second")

    identity = seal_copy(pack, tmp_path / "second", change)
    made = open_pack(str(tmp_path / "second"))
    found = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert found == {*FILES, "new.bin", "pack.toml", "manifest.json"}
    assert (made.folder / "captioner" / "words.json").read_bytes() == b"[]"
    assert (made.folder / "part.onnx.data").read_bytes() == b"weights"
    assert (made.name, made.identity) == ("second", identity)
    assert made.description.parts == pack.description.parts
    assert (pack.folder / "captioner" / "words.json").read_bytes() == b"{}"


def test_files_left_out_take_the_data_beside_them(tmp_path: Path) -> None:
    pack = sealed(tmp_path / "first")
    seal_copy(pack, tmp_path / "second", lambda _: description("second"), without=exported_files(pack))
    names = {path.name for path in (tmp_path / "second").rglob("*") if path.is_file()}
    assert names == {"kept.bin", "words.json", "pack.toml", "manifest.json"}
    assert not exported_files(open_pack(str(tmp_path / "second")))
