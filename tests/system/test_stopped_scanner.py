"""A scanner that stops: each trial that is due has its last word by the deadline, once, also after a crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rtdecode import client as wire
from rtdecode import process_runs
from rtdecode.publish import requests
from rtdecode.records import TrialOverdue
from rtdecode.session.entries import read_outputs
from rtdecode.session.past import Past
from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.conftest import FakeClock
from tests.system.line_harness import PLAN, PROTOCOL, Rig, settings_for
from tests.system.test_one_writer import same

RUN = replace(PLAN, calibration_runs=0, decoding_runs=1, trials_per_run=8, volumes_per_run=30)
LAST = 11
"""The last volume that comes; 18 s have been scanned then."""


@pytest.fixture(scope="module")
def participant() -> Participant:
    return make_participant(RUN.seed, PROTOCOL, ResponseParameters(n_responsive=60))


def finals(rig: Rig) -> dict[str, wire.Beta]:
    found = [beta for beta in rig.recorder.of(wire.Beta) if beta.final]
    assert len(found) == len({beta.trial for beta in found})
    return {beta.trial: beta for beta in found}


def test_trials_that_are_due_have_their_last_word_when_no_volume_comes_any_more(
    participant: Participant, tmp_path: Path
) -> None:
    clock = FakeClock()
    settings = settings_for(tmp_path, RUN, calibration={"runs": 6}, scanner={"stopped_after_s": 60.0})
    rig = Rig(settings, clock)
    scanner = Scanner(RUN, participant, settings.scanner.export_dir, clock, speed=1.0)

    def stop(run: int, volume: int) -> None:
        if volume == LAST:
            scanner.stop()

    scanner.play(lambda message: rig.request(requests.Event, **message), on_volume=stop)
    told = {trial.trial: trial.onset_s for trial in RUN.of_run(1) if trial.onset_s < (LAST + 1) * RUN.t_r_s}
    for name, onset_s in (("unseen", 20.0), ("to come", 300.0)):
        rig.request(requests.Event, kind="trial", run=1, trial=name, onset_s=onset_s, duration_s=1.0)
        told[name] = onset_s
    clock.sleep(1.0)  # the last volume is read
    clock.sleep(55.0)
    seen = [name for name, onset_s in told.items() if onset_s + settings.estimate.final_at_s <= 18.0]
    assert sorted(finals(rig)) == sorted(seen), "until then volumes may still come"
    clock.sleep(10.0)
    due = [name for name in told if name != "to come"]
    assert sorted(finals(rig)) == sorted(due)
    late = finals(rig)[due[-3]]
    assert late.invalid is None, "of a trial that was seen in part there is a beta, as at the end of a run"
    assert late.volume == LAST
    unseen = finals(rig)["unseen"].invalid
    assert unseen is not None
    assert [item.trial for item in Past(tmp_path / "sub-sim_ses-01").inputs(0.0) if isinstance(item, TrialOverdue)] == [
        name for name in due if name not in seen
    ]
    rig.leave()  # killed: the deadline is not what the clock says after it, but what the journal holds
    again = Rig(settings, FakeClock(), resume=True)
    folder = again.finish()
    outputs = [
        wire.unpack(one.topic.encode(), one.payload) for _, one in read_outputs(folder / "journal" / "outputs.journal")
    ]
    betas = [message for message in outputs if isinstance(message, wire.Beta) and message.final]
    assert sorted(str(beta.trial) for beta in betas) == sorted(told)


def test_a_run_that_goes_on_after_all_keeps_what_was_said(participant: Participant, tmp_path: Path) -> None:
    clock = FakeClock()
    settings = settings_for(tmp_path, RUN, calibration={"runs": 6})
    rig = Rig(settings, clock)
    scanner = Scanner(RUN, participant, settings.scanner.export_dir, clock, speed=1.0)

    def pause(run: int, volume: int) -> None:
        if volume == LAST:
            clock.sleep(1.0)  # the last volume is read
            clock.sleep(70.0)

    scanner.play(lambda message: rig.request(requests.Event, **message), on_volume=pause)
    clock.sleep(5.0)
    folder = rig.finish()
    early = [beta for beta in finals(rig).values() if beta.volume == LAST]
    overdue = [item.trial for item in Past(folder).inputs(0.0) if isinstance(item, TrialOverdue)]
    assert overdue
    assert set(overdue) <= {beta.trial for beta in early}
    assert len(finals(rig)) == RUN.trials_per_run
    process_runs(folder, settings=settings.estimate, out=tmp_path / "again")
    same(tmp_path / "again", folder)
