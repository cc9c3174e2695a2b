"""A whole visit of imagery: cues modelled and not decoded, pictures after the epoch, and a client that reads it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode.decode.loading import load_decoder
from rtdecode.demo.collector import SeenTrial
from rtdecode.demo.demo_visits import imagery_settings
from rtdecode.demo.imagery_summary import imagined
from rtdecode.imagery.protocol import ImageryProtocol
from rtdecode.imagery.read_out import ImageryEpoch, ImageryReadOut, scale_of
from rtdecode.packs import open_pack, open_participant
from rtdecode.settings import DecodeSettings
from rtdecode.simulate.imagery_visit import CATCH, CUE, ImageryPlan
from tests.conftest import FakeClock
from tests.system.line_harness import Recorder, run_visit

pytestmark = pytest.mark.system
PLAN = ImageryPlan(
    seed=5,
    calibration_runs=2,
    decoding_runs=1,
    trials_per_run=16,
    volumes_per_run=52,
    repeats_per_run=1,
    catch_per_run=2,
)
PROTOCOL = ImageryProtocol(targets={name: name for name in PLAN.targets}, warm_up=3)
EPOCHS = [trial for trial in PLAN.trials if trial.kind == "imagery"]


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    return run_visit(tmp_path_factory.mktemp("visit"), FakeClock(), PLAN, **imagery_settings(PLAN))


def test_epochs_are_decoded_once_when_they_are_over_and_cues_are_not(visit: tuple[Recorder, Path]) -> None:
    recorder, _ = visit
    assert not recorder.of(wire.Fault)
    names = [trial.trial for trial in EPOCHS]
    cues = {trial.trial for trial in PLAN.trials if trial.condition == CUE}
    assert len(cues) == len(names) == 8
    told = [m.trial for m in recorder.of(wire.Beta) if m.final]
    assert cues | set(names) <= set(told)
    for kind in (wire.Score, wire.Embedding, wire.Reconstruction):
        assert [m.trial for m in recorder.of(kind)] == names  # once each: nothing is drawn while it is imagined


def test_a_client_that_reads_epoch_by_epoch_says_what_the_summary_says(visit: tuple[Recorder, Path]) -> None:
    recorder, folder = visit
    decoder = load_decoder(open_pack("tiny-imagery"), DecodeSettings(stimuli=folder.parent / "stimuli"))
    bundle = open_participant(folder / "bundle")
    decoder.load(bundle)
    betas = {m.trial: np.frombuffer(m.beta.data, m.beta.dtype) for m in recorder.of(wire.Beta) if m.final}
    readout, said = ImageryReadOut(PROTOCOL, decoder.likelihood, scale_of(bundle)), {}
    for trial in EPOCHS:
        found = readout.add(ImageryEpoch(trial=trial.trial, target=trial.stimulus, beta=betas[trial.trial]))
        if found is not None:
            said[trial.trial] = found
    expected = [t.trial for t in EPOCHS[PROTOCOL.warm_up - 1 :] if t.stimulus != CATCH]
    assert list(said) == expected
    seen = [SeenTrial(trial=m.trial, score=m) for m in recorder.of(wire.Score)]
    summary = imagined(PROTOCOL, seen, betas, decoder, scale_of(bundle))
    assert [(one["trial"], one["alone"], one["averaged"], one["rank"]) for one in summary["epochs"]] == [
        (one.trial, one.alone, one.predicted, one.rank) for one in said.values()
    ]
    assert summary["chance"] == 1 / 6
    assert np.isfinite([one["rank"] for one in summary["epochs"]]).all()
