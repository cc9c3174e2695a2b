"""What a decoder says of every volume: once each, in order, whatever dies and however slow it is."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import engines.tiny
from rtdecode import client as wire
from rtdecode.decode.service import DecodeService
from rtdecode.decode.worker import WorkerService
from rtdecode.packs import EnginePack
from rtdecode.session.journal import read
from rtdecode.settings import Settings
from rtdecode.simulate.participant import ResponseParameters, make_participant
from tests.conftest import FakeClock
from tests.system.example_family import WINDOW, install
from tests.system.line_harness import PLAN, PROTOCOL, Recorder, run_visit
from tests.system.test_resume import content, finals, published

EXPECTED = [(PLAN.runs, index) for index in range(PLAN.volumes_per_run)]
"""Calibration runs are not decoded, and so not predicted of."""
Visit = Callable[..., tuple[Recorder, Path]]


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """Scans and decodes a small visit with a family of another package, whose worker is a process of its own."""
    folder = tmp_path_factory.mktemp("family")
    pack = install(folder, engines.tiny.pack_path())
    make_participant(PLAN.seed, PROTOCOL, ResponseParameters(n_responsive=60)).write_region(folder / "region.nii.gz")
    grid = nib.load(folder / "region.nii.gz")
    labels = 1 + np.arange(np.prod(grid.shape)).reshape(grid.shape) % 7
    nib.save(nib.Nifti1Image(labels.astype(np.int16), grid.affine), folder / "atlas.nii.gz")

    def run(out: Path, **options: object) -> tuple[Recorder, Path]:
        sections = {"decode": {"pack": str(pack)}, "estimate": {"parcels": {"atlas": str(folder / "atlas.nii.gz")}}}
        return run_visit(out, FakeClock(), **{"service": worker, **sections, **options})  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield run


def worker(pack: EnginePack, settings: Settings) -> DecodeService:
    return WorkerService(settings.decode)


@pytest.fixture(scope="module")
def whole(visit: Visit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    return visit(tmp_path_factory.mktemp("whole"))


def test_every_volume_has_its_prediction_in_order(whole: tuple[Recorder, Path]) -> None:
    recorder, _ = whole
    predictions = recorder.of(wire.Prediction)
    assert [(p.run, p.volume) for p in predictions] == EXPECTED
    assert [p.seq for p in predictions] == list(range(len(EXPECTED)))
    assert all(p.invalid is None and p.final for p in predictions)
    assert all(p.late_s >= 0 and {"queue", "predict", "total"} == p.stages.keys() for p in predictions)
    assert [p.values["volume"] for p in predictions] == [float(index) for _, index in EXPECTED]
    assert [p.values["seen"] for p in predictions] == [float(min(i + 1, WINDOW)) for _, i in EXPECTED]
    volumes = {(v.run, v.volume): v for v in recorder.of(wire.Volume)}
    for prediction in predictions:
        values = volumes[prediction.run, prediction.volume].parcels["atlas"]
        assert [*values] == [str(label) for label in range(1, 8)]
        assert prediction.values["parcel"] == pytest.approx(np.nansum([*values.values()]), abs=1e-9)
    assert not recorder.of(wire.Fault)
    assert recorder.of(wire.Heartbeat)[-1].decode_ms.keys() == {"embed", "caption", "reconstruct", "predict"}


@pytest.mark.parametrize("seed", range(2))
def test_after_a_kill_every_volume_has_one_prediction_with_the_same_bytes(
    whole: tuple[Recorder, Path],
    visit: Visit,
    tmp_path: Path,
    kill_at: Callable[[list[int], random.Random], None],
    seed: int,
) -> None:
    _, reference = whole
    outputs = list(read(reference / "journal" / "outputs.journal"))
    inputs = sum(1 for _ in read(reference / "journal" / "inputs.journal"))
    own = [place for place, record in enumerate(outputs) if record["topic"] == "prediction"]
    rng = random.Random(seed)
    kill_at(sorted(inputs + place for place in rng.sample(own, 2)), rng)
    recorder, folder = visit(tmp_path)
    assert [s.state for s in recorder.of(wire.Session)].count("resuming") == 2
    before = published(reference, "prediction")
    assert content(published(folder, "prediction")) == content(before)
    assert finals(published(folder, "score")) == finals(published(reference, "score"))
    heard = recorder.of(wire.Prediction)
    assert {(p.run, p.volume): p.values for p in heard} == {(p.run, p.volume): p.values for p in before}  # type: ignore[attr-defined]


def test_a_worker_that_dies_changes_nothing(whole: tuple[Recorder, Path], visit: Visit, tmp_path: Path) -> None:
    made: list[WorkerService] = []

    def mortal(pack: EnginePack, settings: Settings) -> DecodeService:
        made.append(WorkerService(settings.decode))
        return made[0]

    def kill(run: int, volume: int, export: Path) -> None:
        if run == PLAN.runs and volume in (7, 8, 30):
            assert made[0].pid is not None
            os.kill(made[0].pid, signal.SIGKILL)

    recorder, folder = visit(tmp_path, service=mortal, spoil=kill)
    assert made[0].restarts == 3
    assert content(published(folder, "prediction")) == content(published(whole[1], "prediction"))
    assert not [p for p in recorder.of(wire.Prediction) if p.invalid]


def test_a_decoder_slower_than_the_volumes_loses_none_and_says_so(
    whole: tuple[Recorder, Path], visit: Visit, tmp_path: Path
) -> None:
    recorder, folder = visit(tmp_path, decodes=1)
    assert content(published(folder, "prediction")) == content(published(whole[1], "prediction"))
    assert finals(published(folder, "score")) == finals(published(whole[1], "score"))
    faults = [(f.part, f.kind, f.over) for f in recorder.of(wire.Fault)]
    assert faults[0] == ("decode", "late", False)
    assert max(beat.predict_lag for beat in recorder.of(wire.Heartbeat)) > 5
