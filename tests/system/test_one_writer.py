"""A session, a resumed one and `rtdecode process` over what a session keeps give the same files, byte for byte."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tomli_w

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.process import process_runs
from rtdecode.publish import requests
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests import bids
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, PROTOCOL, Rig, calibrate, settings_for

VISIT = replace(PLAN, calibration_runs=1, decoding_runs=2, trials_per_run=12, volumes_per_run=36)
LIVE_ONLY = (
    "_desc-decoded_events.tsv",
    "_desc-decoded_events.json",
    "_desc-estimate_model.safetensors",
    "_desc-calibration_betas.safetensors",
)
"""`process` decodes nothing and calibrates nobody."""
ESTIMATE: dict[str, Any] = {"censor_fd_mm": 1.0, "regions": {"left": "left.nii.gz"}}
HALF, LOST, BROKEN, LAST = (1, 9), (1, 20), (2, 24), (3, 35)
"""Volumes: truncated; never exported; the last of a run that was broken off; the last of its run, never exported."""


@dataclass(frozen=True)
class Recorded:
    """A session that is over."""

    folder: Path
    settings: EstimateSettings
    heard: list[wire.Message]

    @property
    def func(self) -> Path:
        (found,) = self.folder.glob("sub-*/ses-*/func")
        return found


def scan(
    out: Path, *, resume_at: tuple[tuple[int, int], ...] = (), late: bool = False, **sections: dict[str, Any]
) -> Recorded:
    """Scan a visit in which all goes wrong that may.

    `resume_at` are volumes after which the daemon is killed; with `late`, one trial is announced after its moment.
    """
    clock = FakeClock()
    out.mkdir()
    left = np.zeros(PROTOCOL.shape, np.uint8)
    left[8:16, 8:24, 4:8] = 1
    nib.save(nib.Nifti1Image(left, PROTOCOL.affine), out / "left.nii.gz")
    settings = settings_for(out, VISIT, **{"estimate": ESTIMATE, **sections})
    rig = Rig(settings, clock)
    participant = make_participant(VISIT.seed, PROTOCOL, ResponseParameters(n_responsive=60))
    export = settings.scanner.export_dir
    scanner = Scanner(VISIT, participant, export, clock, speed=1.0)

    def announce(message: dict[str, Any]) -> None:
        if (message["kind"], message["run"]) == ("run_end", BROKEN[0]):
            return
        if message.get("trial") == "r03t003":
            message = {name: value for name, value in message.items() if name not in ("stimulus", "condition")}
        rig.request(requests.Event, **message)

    def hold(run: int) -> None:
        for _ in range(4):
            clock.sleep(2.5)
        if run == 1:
            for trial, onset_s in (("beyond", 500.0), ("too close to the end", 52.5)):
                rig.request(requests.Event, kind="trial", run=1, trial=trial, onset_s=onset_s, duration_s=1 / 3)
        if run == VISIT.calibration_runs + 1 and settings.decode.bundle is None:
            calibrate(settings, rig)
            clock.sleep(1.0)

    def spoil(run: int, volume: int) -> None:
        newest = max(export.glob("*.dcm"))
        if (run, volume) == HALF:
            os.truncate(newest, newest.stat().st_size // 2)
        elif (run, volume) in (LOST, LAST) or (run == BROKEN[0] and volume > BROKEN[1]):
            newest.unlink()
        if late and (run, volume) == (1, 18):
            rig.request(requests.Event, kind="trial", run=1, trial="late", onset_s=21.0, duration_s=1.0)
        if (run, volume) in resume_at:
            rig._restart()

    scanner.play(announce, hold, spoil)
    for _ in range(8):
        clock.sleep(1.0)
    return Recorded(rig.finish(), settings.estimate, rig.recorder.messages)


def files(dataset: Path) -> dict[str, bytes]:
    """Every file of a dataset's subject by its path, but those that only a session has."""
    found = (path for path in dataset.glob("sub-*/**/*") if path.is_file() and not path.name.endswith(LIVE_ONLY))
    return {str(path.relative_to(dataset)): path.read_bytes() for path in found}


def same(got: Path, expected: Path) -> None:
    ours, theirs = files(got), files(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return scan(tmp_path_factory.mktemp("whole") / "visit")


def test_process_over_the_session_folder_writes_its_files_again(session: Recorded, tmp_path: Path) -> None:
    settings = session.folder.parent / "session.toml"
    settings.write_text(tomli_w.dumps({"estimate": ESTIMATE}))
    command = ["process", str(session.folder), "--settings", str(settings), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    same(tmp_path / "out", session.folder)
    assert len(files(session.folder)) > 50
    assert bids.errors(session.folder) == bids.errors(tmp_path / "out") == []


def test_a_resumed_session_does_too_and_process_over_its_volumes_and_event_tables(
    session: Recorded, tmp_path: Path
) -> None:
    resumed = scan(tmp_path / "visit", resume_at=((1, 12), LOST, (1, 35), BROKEN, (3, 30)))
    same(resumed.folder, session.folder)
    volumes = [resumed.folder / "journal" / "volumes" / f"run-{run:02d}" for run in range(1, VISIT.runs + 1)]
    events = sorted(resumed.func.glob("*_run-??_events.tsv"))
    process_runs(volumes, events=events, settings=resumed.settings, out=tmp_path / "out")
    same(tmp_path / "out", session.folder)


def test_a_second_visit_with_dummies_and_a_late_announcement(session: Recorded, tmp_path: Path) -> None:
    bundle = session.folder / "bundle"
    second = scan(
        tmp_path / "visit",
        late=True,
        session={"session": "02"},
        decode={"bundle": str(bundle)},
        scanner={"n_dummy": 2},
    )
    process_runs(second.folder, settings=second.settings, bundle=bundle, out=tmp_path / "out")
    same(tmp_path / "out", second.folder)
    assert [path.name for path in second.folder.rglob("*_desc-alignmentplot_bold.png")]
    for run in (1, 3):
        quality = rows(next(second.func.glob(f"*_run-{run:02d}_desc-quality_timeseries.tsv")))
        assert [int(row["volume"]) for row in quality] == list(range(VISIT.volumes_per_run))
        assert {row["skipped"] for row in quality[-2:]} == {"missing at the end of the run"}


def test_row_i_is_volume_i_and_what_is_missing_says_why(session: Recorded) -> None:
    lengths = {1: 36, 2: BROKEN[1] + 1, 3: 36}
    sent = {(v.run, v.volume): v for v in session.heard if isinstance(v, wire.Volume)}
    told = {(s.run, s.volume): s.reason for s in session.heard if isinstance(s, wire.Skipped)}
    assert told.keys() == {HALF, LOST, LAST}
    censored = 0
    for run, length in lengths.items():
        motion, quality, regions = (
            rows(next(session.func.glob(f"*_run-{run:02d}_desc-{name}_timeseries.tsv")))
            for name in ("motion", "quality", "roi")
        )
        assert len(motion) == len(quality) == len(regions) == length
        for index, (moved, judged, region) in enumerate(zip(motion, quality, regions, strict=True)):
            assert judged["volume"] == str(index)
            if (run, index) not in sent:
                assert {*moved.values(), *region.values()} == {"n/a"}
                assert judged["skipped"] == told[run, index]
                continue
            volume = sent[run, index]
            assert judged["skipped"] == "n/a"
            np.testing.assert_allclose([float(x) for x in moved.values()], [*volume.motion, volume.fd_mm], rtol=1e-8)
            assert judged["censored"] == str(int(volume.censored))
            assert volume.censored <= (volume.fd_mm > session.settings.censor_fd_mm)
            assert (region["left"] == "n/a") >= volume.censored
            censored += volume.censored
    assert censored > 3
    assert "nan" not in {cell for path in session.func.glob("*.tsv") for row in rows(path) for cell in row.values()}


def test_every_trial_has_a_row_and_an_invalid_one_says_why(session: Recorded) -> None:
    mask = np.asarray(nib.load(next(session.func.glob("*_desc-brain_mask.nii.gz"))).dataobj) > 0
    finals = {b.trial: b for b in session.heard if isinstance(b, wire.Beta) and b.final}
    seen = 0
    for run in range(1, VISIT.runs + 1):
        stem = f"*_run-{run:02d}_desc-trial"
        table = rows(next(session.func.glob(f"{stem}_events.tsv")))
        image = nib.load(next(session.func.glob(f"{stem}_betas.nii.gz")))
        assert image.get_data_dtype() == np.float32
        maps = np.asarray(image.dataobj)
        assert maps.shape[3] == len(table)
        assert [float(row["onset"]) for row in table] == sorted(float(row["onset"]) for row in table)
        names = json.loads(next(session.func.glob(f"{stem}_betas.json")).read_text())["Trials"]
        assert names == [row["trial"] for row in table]
        for row, place in zip(table, range(len(table)), strict=True):
            final = finals[row["trial"]]
            values = maps[mask, place]
            assert (maps[~mask, place] == 0).all()
            np.testing.assert_array_equal(values, np.frombuffer(final.beta.data, final.beta.dtype))
            assert (row["invalid"] == "n/a") == (final.invalid is None) == bool(np.isfinite(values).all())
            assert row["invalid"] == (final.invalid or "n/a")
            assert float(row["time_after_onset"]) == pytest.approx(final.delay_s)
            seen += 1
    assert seen == len(finals)
    assert {name for name, final in finals.items() if final.invalid} >= {"beyond", "too close to the end"}
    blank = [row for row in rows(next(session.func.glob("*_run-03_events.tsv"))) if row["trial"] == "r03t003"]
    assert [(row["trial_type"], row["stim_id"]) for row in blank] == [("n/a", "n/a")]
