"""A participant who comes again and is calibrated anew from a few trials, beside those of the earlier visit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.session_trials import calibrator_for, open_earlier, session_trials
from rtdecode import client as wire
from rtdecode.check import check
from rtdecode.errors import CalibrationError, SettingsError
from rtdecode.estimate.reestimate import open_betas
from rtdecode.packs import open_pack, open_participant
from rtdecode.publish import requests
from rtdecode.settings import Settings
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, PROTOCOL, Recorder, Rig, calibrate, run_visit, settings_for

pytestmark = pytest.mark.system

AGAIN = replace(PLAN, calibration_runs=1, decoding_runs=1, trials_per_run=12)
CHANGED = ResponseParameters(n_responsive=60, mean_response=6.0)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Session folder of the calibrated visit."""
    return run_visit(tmp_path_factory.mktemp("first"), FakeClock())[1]


def visit(out: Path, first: Path, *, earlier: bool) -> tuple[Settings, Recorder, Path]:
    """Come again, decode with the earlier bundle, and calibrate anew from the first run."""
    section = {"runs": 6, **({"earlier_session": str(first)} if earlier else {})}
    settings = settings_for(
        out, AGAIN, session={"session": "02"}, decode={"bundle": str(first / "bundle")}, calibration=section
    )
    clock = FakeClock()
    rig = Rig(settings, clock)
    scanner = Scanner(
        AGAIN, make_participant(AGAIN.seed, PROTOCOL, CHANGED), settings.scanner.export_dir, clock, speed=1.0
    )

    def hold(run: int) -> None:
        clock.sleep(10.0)
        if run == 2:
            calibrate(settings, rig)
            clock.sleep(1.0)

    def ask(run: int, volume: int) -> None:
        if (run, volume) == (1, 0):
            rig.request(requests.Mode, mode="calibrate", runs=1, token="again")

    scanner.play(lambda message: rig.request(requests.Event, **message), hold, ask)
    for _ in range(8):
        clock.sleep(1.0)
    return settings, rig.recorder, rig.finish()


@pytest.fixture(scope="module")
def again(first: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Recorder, Path]:
    return visit(tmp_path_factory.mktemp("again"), first, earlier=True)


def bundle_of(folder: Path) -> Path:
    (found,) = folder.glob("bundle-from-run-*")
    return found


def test_both_visits_make_the_new_bundle(again: tuple[Settings, Recorder, Path], first: Path) -> None:
    _, recorder, folder = again
    new, old = open_participant(bundle_of(folder)).provenance, open_participant(first / "bundle").provenance
    assert new.earlier_session == old.session
    assert new.earlier_trials == old.trials
    usable = {m.trial for m in recorder.of(wire.Beta) if m.run == 1 and m.final and m.invalid is None}
    assert new.trials == old.trials + len(usable)
    names = {name.removesuffix(f" of session {old.session}") for name in new.stimuli}
    assert set(old.stimuli) <= names  # those that are other pictures of the same name today are kept apart
    shown = {m.stimulus for m in recorder.of(wire.Beta) if m.trial in usable}
    assert len(new.stimuli) == len(old.stimuli) + len(shown)
    assert [m.trials for m in recorder.of(wire.Calibration)] == [len(usable)] * 2  # of today


def test_trials_are_decoded_by_the_earlier_bundle_until_the_new_one_comes(
    again: tuple[Settings, Recorder, Path], first: Path
) -> None:
    _, recorder, folder = again
    told = [message.bundle for message in recorder.of(wire.Session) if message.bundle]
    identities = [open_participant(path).identity for path in (first / "bundle", bundle_of(folder))]
    assert list(dict.fromkeys(told)) == identities
    scored = {m.trial for m in recorder.of(wire.Score) if m.final and m.invalid is None}
    assert scored == {m.trial for m in recorder.of(wire.Beta) if m.final and m.invalid is None}


def test_what_was_decoded_is_what_is_learned_from(again: tuple[Settings, Recorder, Path], first: Path) -> None:
    """Scales are those of the earlier visit from the start, so that betas of both visits are of one kind."""
    _, _, folder = again
    (path,) = folder.rglob("*_desc-calibration_betas.safetensors")
    learned = open_betas(path).trials
    decoded = {one.trial: one.beta for one in session_trials(folder) if one.run == 1}
    assert learned.keys() == decoded.keys()
    for trial, beta in decoded.items():
        np.testing.assert_allclose(learned[trial], beta, rtol=1e-4, atol=1e-4)
    new, old = (path / "estimate.safetensors" for path in (bundle_of(folder), first / "bundle"))
    assert new.read_bytes() == old.read_bytes()


def test_its_own_trials_alone_do_as_well_where_no_earlier_session_is_named(first: Path, tmp_path: Path) -> None:
    _, _, folder = visit(tmp_path, first, earlier=False)
    provenance = open_participant(bundle_of(folder)).provenance
    assert (provenance.earlier_trials, provenance.earlier_session) == (0, "")


def test_the_same_from_the_folders_alone(again: tuple[Settings, Recorder, Path]) -> None:
    settings, _, folder = again
    calibrator = calibrator_for(settings, open_pack("tiny"))
    for trial in session_trials(folder):
        if trial.run == 1:
            calibrator.add(trial.beta, trial=trial.trial, stimulus=str(calibrator.known(trial.names)), run=1)
    (path,) = folder.rglob("*_desc-calibration_betas.safetensors")
    calibrator.take_again(open_betas(path))
    kept = open_participant(bundle_of(folder)).encoding
    for name, tensor in calibrator.fit().encoding.tensors().items():
        np.testing.assert_array_equal(tensor, kept[name])


def test_somebody_else_and_other_voxels_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="expected an earlier session of participant 07, got one of sim"):
        open_earlier(first, "07")
    with pytest.raises(SettingsError, match=r"expected the bundle of that session as decode.bundle"):
        settings_for(tmp_path, AGAIN, calibration={"earlier_session": str(first)})


def test_check_tells_before_the_scan(first: Path, tmp_path: Path) -> None:
    found = {}
    for place, (named, participant) in enumerate([(first, "sim"), (first, "07"), (tmp_path / "none", "sim")]):
        out = tmp_path / str(place)
        out.mkdir()
        settings = settings_for(
            out,
            AGAIN,
            session={"participant": participant},
            decode={"bundle": str(first / "bundle")},
            calibration={"earlier_session": str(named)},
        )
        (found[place],) = (one for one in check(settings, FakeClock()) if one.subject == "earlier session")
    assert (found[0].detail, found[0].problem) == ("ready", "")
    assert "expected an earlier session of participant 07, got one of sim" in found[1].problem
    assert found[2].problem
