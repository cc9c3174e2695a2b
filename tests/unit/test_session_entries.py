"""Whatever is spoilt in a journal's record, provenance or learning curve is told by its place, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rtdecode.errors import BundleError, JournalError
from rtdecode.packs import open_participant
from rtdecode.packs.participant_bundle import PARTICIPANT_SCHEMA, CurvePoint
from rtdecode.packs.sealed import seal
from rtdecode.records import (
    Command,
    FilmStart,
    RunEnd,
    RunStart,
    Skipped,
    TrialAmended,
    TrialCancelled,
    TrialEvent,
    TrialOverdue,
)
from rtdecode.session import entries
from rtdecode.session.entries import read_inputs, read_outputs
from rtdecode.session.journal import Journal
from tests.conftest import FakeClock
from tests.decode_small import write_category_bundle

RECORDS: dict[str, dict[str, Any]] = {
    "session": {"session": "sim-01"},
    "volume": {
        "run": 1, "volume": 2, "path": "a.dcm", "kept": "journal/volumes/a.nii", "series_uid": "1.2", "instance": 3,
        "slope": 1.0, "intercept": 0.0, "affine": [1.0] * 16, "t_r_s": None, "t_r_measured": False,
        "slice_times_s": None, "acquired_s": None, "received_s": 5.0, "problems": [],
    },
    "skipped": asdict(Skipped(run=1, volume=None, path="x", reason="y")),
    "missing": asdict(Skipped(run=1, volume=3, path="x", reason="y")),
    "run_start": asdict(RunStart(run=1, expected=3, t_r_s=1.5)),
    "run_end": asdict(RunEnd(run=1, volumes=None)),
    "trial": asdict(TrialEvent(run=1, trial="a", onset_s=1.0, duration_s=2.0, stimulus="s")),
    "amend": asdict(TrialAmended(run=1, trial="a", onset_s=1.0, duration_s=2.0, stimulus="s")),
    "cancel": asdict(TrialCancelled(run=1, trial="a")),
    "overdue": asdict(TrialOverdue(run=1, trial="a")),
    "film": asdict(FilmStart(run=1, film="f", onset_s=6.0)),
    "bundle": {"folder": "b", "identity": "i"},
    "command": asdict(Command(token="t", command="bad_run", run=2, regions=("a",))),
    "sources": {"hashes": {"estimate.mask": "0" * 64}},
    "blinded": {"protocol": "p", "participant": "01", "nonce": "n", "hash": "h"},
    "sealed": {"place": "run 1 volume 2", "envelope": b"x"},
    "unblinded": {"reason": "r"},
    "bundle_loaded": {"identity": "i"},
    "superseded": {"trial": "a", "revision": 1},
}  # fmt: skip
OUTPUT = {"topic": "run", "payload": b"x"}
OPTIONAL = {("volume", "t_r_measured"), ("run_start", "t_r_s"), ("trial", "candidates"), ("amend", "candidates")}


def written(folder: Path, kind: str, record: dict[str, Any]) -> Path:
    path = folder / "inputs.journal"
    journal = Journal(path, FakeClock())
    journal.append(kind, **record)
    journal.close()
    return path


def test_every_kind_of_record_is_known() -> None:
    assert {kind.__struct_config__.tag for kind in entries.Input.__args__} == set(RECORDS)


@pytest.mark.parametrize("kind", [*RECORDS, "output"])
def test_a_record_is_read_as_it_was_written(kind: str, tmp_path: Path) -> None:
    record = RECORDS.get(kind, OUTPUT)
    path = written(tmp_path, kind, record)
    (found,) = [e for _, e in read_outputs(path)] if kind == "output" else list(read_inputs(path))
    fields = msgspec.structs.asdict(found)
    assert {name: fields[name] for name in record} == record


@pytest.mark.parametrize(("kind", "field"), [(kind, name) for kind, record in RECORDS.items() for name in record])
def test_a_spoilt_field_is_told_with_its_place(kind: str, field: str, tmp_path: Path) -> None:
    for spoilt in ({}, {field: {"no": 1}}):
        folder = tmp_path / str(len(spoilt))
        folder.mkdir()
        record = {name: value for name, value in RECORDS[kind].items() if name != field} | spoilt
        path = written(folder, kind, record)
        if not spoilt and (kind, field) in OPTIONAL:
            assert len(list(read_inputs(path))) == 1
        else:
            with pytest.raises(JournalError, match=rf"inputs\.journal: byte \d+: {field}(\.no)?: expected"):
                list(read_inputs(path))


def test_an_unknown_kind_or_field_of_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kind").mkdir()
    with pytest.raises(JournalError, match=r"byte \d+: kind: expected one of .* got 'trail'"):
        list(read_inputs(written(tmp_path / "kind", "trail", {})))
    with pytest.raises(JournalError, match=r"byte \d+: colour: expected no such field"):
        list(read_inputs(written(tmp_path, "run_end", {**RECORDS["run_end"], "colour": "red"})))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    write_category_bundle(folder)
    return folder


def resealed(bundle: Path, target: Path, file: str, change: Callable[[Any], Any]) -> Path:
    def write(draft: Path) -> None:
        for path in bundle.iterdir():
            if path.name != "manifest.json":
                (draft / path.name).write_bytes(path.read_bytes())
        (draft / file).write_text(json.dumps(change(json.loads((draft / file).read_text()))))

    seal(target, PARTICIPANT_SCHEMA, write)
    return target


def test_every_key_of_the_provenance_is_needed_and_typed(bundle: Path, tmp_path: Path) -> None:
    of_some = {"network", "earlier_trials", "earlier_session"}  # of fine-tuned bundles, and of those of two visits
    names = json.loads((bundle / "provenance.json").read_text()).keys() - of_some
    assert len(names) == 29
    for name in sorted(names):
        without = resealed(
            bundle, tmp_path / "b", "provenance.json", lambda p, n=name: {k: v for k, v in p.items() if k != n}
        )
        with pytest.raises(BundleError, match=rf"provenance\.json: {name}: expected a value, got none"):
            open_participant(without)
    for name in sorted(names | of_some):
        spoilt = resealed(bundle, tmp_path / "b", "provenance.json", lambda p, n=name: {**p, n: [{"no": 1}]})
        with pytest.raises(BundleError, match=rf"provenance\.json: {name}(\[0\])?: expected"):
            open_participant(spoilt)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("provenance.json", lambda p: {**p, "mood": "good"}, r"provenance\.json: mood: expected no such field"),
        ("provenance.json", lambda _: [], r"provenance\.json: content: expected object"),
        ("learning_curve.json", lambda c: [*c, {}], r"learning_curve\.json: \[\d+\]\.trials: expected a value"),
        ("learning_curve.json", lambda _: [{"trials": "x"}], r"learning_curve\.json: \[0\]\.trials: expected int"),
        ("learning_curve.json", lambda _: None, r"learning_curve\.json: content: expected array"),
    ],
)
def test_a_spoilt_file_of_a_bundle_is_told(
    file: str, change: Callable[[Any], Any], told: str, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=told):
        open_participant(resealed(bundle, tmp_path / "b", file, change))


def test_a_curve_point_says_no_more_than_it_knows() -> None:
    told = msgspec.to_builtins(CurvePoint(trials=3))
    assert told.pop("trials") == 3
    assert {name for name, value in told.items() if value is None} == {
        "percentile", "p_value", "top1", "top1_chance", "two_way", "ceiling",
    }  # fmt: skip
    assert not any(told.values())
