"""Decode early, improve later: decoders that come while calibration goes on, which is started again and again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.calibrator import Calibrator
from calibration.session_trials import read_calibration
from calibration.visit_client import CalibrationRun
from rtdecode import client as wire
from rtdecode.decode.loading import load_candidates
from rtdecode.errors import CalibrationError
from rtdecode.packs import open_pack, open_participant
from rtdecode.process.kept_runs import calibration_runs
from rtdecode.publish import requests
from rtdecode.session.recording import session_folder
from rtdecode.settings import Settings
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, PROTOCOL, RecordedClient, Recorder, Rig, settings_for

pytestmark = pytest.mark.system

VISIT = replace(PLAN, calibration_runs=3, decoding_runs=1)


def calibrate_so_far(settings: Settings, rig: Rig) -> Path | None:
    """Run `rtdecode calibrate` anew on all that was published; None where calibration is not over."""
    pack = open_pack(settings.decode.pack)
    calibrator = Calibrator(load_candidates(pack, settings.decode.stimuli))
    client: Any = RecordedClient(rig.request)
    run = CalibrationRun(client, calibrator, pack, session_folder(settings.session), settings.calibration)
    with suppress(CalibrationError):  # all that was published is read, and calibration is not over
        return run.run()
    return None


def scan(out: Path, clock: FakeClock, **calibration: Any) -> tuple[Recorder, Path, list[Path | None]]:
    """Scan a visit, with `rtdecode calibrate` killed and started again between all runs."""
    settings = settings_for(out, VISIT, calibration=calibration)
    rig = Rig(settings, clock)
    participant = make_participant(VISIT.seed, PROTOCOL, ResponseParameters(n_responsive=60))
    scanner = Scanner(VISIT, participant, settings.scanner.export_dir, clock, speed=1.0)
    bundles: list[Path | None] = []

    def hold(run: int) -> None:
        clock.sleep(10.0)
        if run > 1 and not any(bundles):
            bundles.append(calibrate_so_far(settings, rig))
            clock.sleep(1.0)

    scanner.play(lambda message: rig.request(requests.Event, **message), hold, lambda run, volume: None)
    for _ in range(8):
        clock.sleep(1.0)
    return rig.recorder, rig.finish(), bundles


def test_trials_are_decoded_by_the_newest_decoder_while_calibration_goes_on(tmp_path: Path, clock: FakeClock) -> None:
    recorder, folder, bundles = scan(tmp_path, clock, bundle_every=12)
    assert bundles == [None, None, folder / "bundle"]
    usable = {m.trial: m.run for m in recorder.of(wire.Beta) if m.final and m.invalid is None}
    counts = [sum(run <= last for run in usable.values()) for last in (1, 2, 3)]
    early = [folder / f"bundle-after-{n:04d}-trials" for n in counts[:2]]
    opened = [open_participant(path) for path in (*early, folder / "bundle")]
    assert [one.provenance.trials for one in opened] == counts
    told = [message.bundle for message in recorder.of(wire.Session) if message.bundle]
    assert list(dict.fromkeys(told)) == [one.identity for one in opened]
    scored = {m.trial for m in recorder.of(wire.Score) if m.final and m.invalid is None}
    assert scored == {trial for trial, run in usable.items() if run > 1}
    assert [m.trials for m in recorder.of(wire.Calibration)] == [*counts, counts[-1]]
    assert calibration_runs(folder) == 3
    session = read_calibration(folder, tmp_path / "stimuli")  # what a report starts from
    assert session.calibrator.trials == counts[-1]
    assert len(session.decoded) == len(usable) - counts[-1]
    for name, tensor in session.calibrator.fit().encoding.tensors().items():
        np.testing.assert_array_equal(tensor, opened[-1].encoding[name])


def test_calibration_that_ends_early_teaches_no_further_run(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "calibration.curve_point.advise", lambda trials, *_: ("enough", "") if trials > 20 else ("", "")
    )
    recorder, folder, bundles = scan(tmp_path, clock, stop="advice")
    assert bundles == [None, folder / "bundle"]
    usable = {m.trial: m.run for m in recorder.of(wire.Beta) if m.final and m.invalid is None}
    assert open_participant(folder / "bundle").provenance.trials == sum(run <= 2 for run in usable.values())
    assert recorder.of(wire.Session)[-1].calibration_runs == 2
    assert calibration_runs(folder) == 2
    scored = {m.trial for m in recorder.of(wire.Score) if m.final and m.invalid is None}
    assert scored == {trial for trial, run in usable.items() if run > 2}
    (model,) = folder.glob("sub-*/ses-*/func/*_desc-estimate_model.safetensors")
    assert model.read_bytes() == (folder / "bundle" / "estimate.safetensors").read_bytes()
