"""Commands and corrections through the whole line: answered, kept, carried out once, and folded again after a kill."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.session_trials import session_trials
from rtdecode import client as wire
from rtdecode.derivatives.columns import read_table
from rtdecode.errors import AnotherSession, ProtocolError, RtdecodeError
from rtdecode.evaluate.recorded_session import read_betas
from rtdecode.process import process_runs
from rtdecode.publish import requests
from rtdecode.session.entries import bad_runs
from rtdecode.session.journal import read
from rtdecode.settings import Settings, parse
from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.conftest import FakeClock
from tests.system.line_harness import PROTOCOL, Recorder, Rig
from tests.system.test_resume import content, published, tables

PLAN = VisitPlan(
    seed=5, calibration_runs=1, decoding_runs=2, trials_per_run=8, volumes_per_run=30, t_r_s=PROTOCOL.t_r_s
)
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def participant() -> Participant:
    return make_participant(PLAN.seed, PROTOCOL, ResponseParameters(n_responsive=120))


def settings_for(participant: Participant, out: Path) -> Settings:
    (out / "export").mkdir(parents=True)
    participant.write_region(out / "region.nii.gz")
    raw = {
        "session": {"participant": "sim", "output": ".", "seed": 3},
        "scanner": {"export_dir": "export", "gap_timeout_s": 4.0, "watch": "polling"},
        "estimate": {"regions": {"visual": "region.nii.gz", "other": "region.nii.gz"}},
        "calibration": {"runs": 1},
        "feedback": {"score": "region", "regions": ["visual"], "baseline_volumes": 3, "deadline_s": 60.0},
    }
    return parse(raw, root=out)


class Steered:
    """A visit in which things are asked for after given volumes, each twice: the first answer may be lost."""

    def __init__(self, participant: Participant, out: Path) -> None:
        self.clock = FakeClock()
        self.settings = settings_for(participant, out)
        self.rig = Rig(self.settings, self.clock)
        self.answers: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self.refused: dict[str, str] = {}
        scanner = Scanner(PLAN, participant, self.settings.scanner.export_dir, self.clock, speed=1.0)
        self._trials = {run: [t.trial for t in PLAN.of_run(run)] for run in (1, 2, 3)}
        scanner.play(
            lambda message: self.rig.request(requests.Event, **message), lambda run: self.clock.sleep(10.0), self._after
        )
        for _ in range(8):
            self.clock.sleep(1.0)
        self.folder = self.rig.finish()

    def _after(self, run: int, volume: int) -> None:
        asked = self._asked().get((run, volume))
        if asked is not None:
            kind, fields = asked
            self.answers[run, volume] = [self.rig.request(kind, **fields) for _ in range(2)]
        for name, (kind, fields) in self._refused().get((run, volume), {}).items():
            with pytest.raises(RtdecodeError) as told:
                self.rig.request(kind, **fields)
            self.refused[name] = str(told.value)

    def _asked(self) -> dict[tuple[int, int], tuple[Any, dict[str, Any]]]:
        first, second = self._trials[1], self._trials[3]
        amend = {"kind": "amend", "run": 1, "trial": first[0], "stimulus": "dog99", "condition": "dog"}
        calibrate = {"mode": "calibrate", "runs": 2, "token": "again"}
        return {
            (1, 4): (requests.Event, amend),
            (1, 20): (requests.Event, {"kind": "cancel", "run": 1, "trial": first[-1]}),
            (2, 1): (requests.Mode, calibrate),
            (2, 3): (requests.Control, {"token": "a", "command": "pause", "reason": "coughs"}),
            (2, 5): (requests.Control, {"token": "t", "command": "feedback", "threshold": 0.5, "half_life_s": 2.0}),
            (2, 16): (requests.Control, {"token": "b", "command": "resume"}),
            (2, 18): (requests.Control, {"token": "r", "command": "feedback", "regions": ["other"]}),
            (2, 26): (requests.Control, {"token": "c", "command": "bad_run", "run": 1, "reason": "fell asleep"}),
            (3, 12): (requests.Control, {"token": "d", "command": "bad_run", "run": 3}),
            (3, 4): (requests.Event, {"kind": "amend", "run": 3, "trial": second[0], "duration_s": 1.25}),
        }

    def _refused(self) -> dict[tuple[int, int], dict[str, tuple[Any, dict[str, Any]]]]:
        first = self._trials[1]
        return {
            (1, 28): {
                "late": (requests.Event, {"kind": "amend", "run": 1, "trial": first[0], "onset_s": 2.0}),
                "unknown": (requests.Event, {"kind": "cancel", "run": 1, "trial": "nobody"}),
                "withdrawn": (requests.Event, {"kind": "amend", "run": 1, "trial": first[-1], "onset_s": 2.0}),
            },
            (2, 10): {
                "paused": (requests.Control, {"token": "x", "command": "pause"}),
                "token": (requests.Control, {"token": "a", "command": "resume"}),
                "region": (requests.Control, {"token": "y", "command": "feedback", "regions": ["nowhere"]}),
                "target": (requests.Control, {"token": "y", "command": "feedback", "target": "cat"}),
                "to come": (requests.Control, {"token": "y", "command": "bad_run", "run": 9}),
                "bundle": (requests.Mode, {"mode": "decode", "bundle": "nowhere"}),
            },
            (2, 20): {"not paused": (requests.Control, {"token": "z", "command": "resume"})},
            (3, 20): {"twice": (requests.Control, {"token": "w", "command": "bad_run", "run": 3})},
        }


@pytest.fixture(scope="module")
def whole(participant: Participant, tmp_path_factory: pytest.TempPathFactory) -> Steered:
    return Steered(participant, tmp_path_factory.mktemp("whole"))


def commands(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read(folder / "journal" / "inputs.journal") if r["kind"] in ("command", "amend", "cancel")]


def test_what_is_asked_twice_has_one_answer_and_is_carried_out_once(whole: Steered) -> None:
    assert len(whole.answers) == 10
    for place, (one, again) in whole.answers.items():
        assert {**one, "warnings": []} == {**again, "warnings": []}, place
    assert len(commands(whole.folder)) == 10
    assert whole.answers[2, 1][0] == {"run": 2, "onset_s": pytest.approx(PLAN.t_r_s), "last_run": 3}


def test_what_makes_no_sense_is_refused_with_the_reason(whole: Steered) -> None:
    told = whole.refused
    assert "its beta is final" in told["late"]
    assert "none of that name was" in told["unknown"]
    assert "it was withdrawn" in told["withdrawn"]
    assert told["paused"] == "decoding is paused already"
    assert "named the command pause before" in told["token"]
    assert "expected names of estimate.regions (visual, other), got 'nowhere'" in told["region"]
    assert "expected one for scores of trials" in told["target"]
    assert told["to come"] == "run 9: expected one that has begun, 1 to 2"
    assert "nowhere" in told["bundle"]
    assert told["not paused"] == "decoding is not paused"
    assert told["twice"] == "run 3 was marked as bad before"


def test_the_session_tells_its_state_after_each_command(whole: Steered) -> None:
    told = whole.rig.recorder.of(wire.Session)
    assert [m.paused for m in told] == [False, False, True, True, False, False, False, False]
    assert told[-1].bad_runs == (1, 3)
    assert told[-1].calibration_from == (2.0, pytest.approx(PLAN.t_r_s))
    assert told[-1].calibration_runs == 3


def test_the_tables_tell_the_final_truth(whole: Steered) -> None:
    func = whole.folder / "sub-sim" / "ses-01" / "func"
    events = [read_table(func / f"sub-sim_ses-01_task-rtdecode_run-{run:02d}_events.tsv")[0] for run in (1, 3)]
    first, last = (PLAN.of_run(run) for run in (1, 3))
    assert [row["trial"] for row in events[0]] == [t.trial for t in first[:-1]]
    assert (events[0][0]["stim_id"], events[0][0]["trial_type"]) == ("dog99", "dog")
    assert float(events[1][0]["duration"]) == 1.25 != last[0].duration_s
    rows = read_table(func / "sub-sim_ses-01_task-rtdecode_run-01_desc-trial_events.tsv")[0]
    assert [row["trial"] for row in rows] == [t.trial for t in first[:-1]]
    assert {row["invalid"] for row in rows} == {"run 1 was marked as bad: fell asleep"}
    withdrawn = [m for m in whole.rig.recorder.of(wire.Beta) if m.trial == first[-1].trial]
    assert [(m.final, m.invalid) for m in withdrawn] == [(True, "the experiment has withdrawn it")]


def test_trials_of_bad_runs_are_none_of_what_is_evaluated(whole: Steered) -> None:
    good = {m.trial for m in whole.rig.recorder.of(wire.Beta) if m.run == 2 and m.final and m.invalid is None}
    assert read_betas(whole.folder).keys() == {one.trial for one in session_trials(whole.folder)} == good
    assert len(good) == 8
    assert bad_runs(whole.folder) == {1, 3}


def test_a_score_for_feedback_changes_as_told(whole: Steered) -> None:
    told = {m.volume: m for m in whole.rig.recorder.of(wire.Feedback) if m.run == 2}
    assert {m.threshold for v, m in told.items() if v < 5} == {None}
    assert all((m.reached is None) == (m.value is None) for v, m in told.items() if v > 6)
    assert all(m.reached == (m.value >= 0.5) for v, m in told.items() if v > 6 and m.value is not None)
    assert {v for v, m in told.items() if m.state == "baseline"} >= {19, 20}  # another region, another baseline
    assert told[17].regions == ("visual",)
    assert told[20].regions == ("other",)


def test_after_kills_the_session_is_in_the_state_that_commands_left(
    whole: Steered, participant: Participant, tmp_path: Path, kill_at: Callable[[list[int], random.Random], None]
) -> None:
    records = sum(1 for name in ("inputs", "outputs") for _ in read(whole.folder / "journal" / f"{name}.journal"))
    rng = random.Random(4)
    kill_at(sorted(rng.sample(range(20, records), 4)), rng)
    again = Steered(participant, tmp_path)
    assert again.rig.restarts == 4
    for topic in ("beta", "feedback", "volume"):
        assert content(published(again.folder, topic)) == content(published(whole.folder, topic)), topic
    assert tables(again.folder) == tables(whole.folder)
    plain = [{k: v for k, v in r.items() if k != "t_wall"} for r in commands(again.folder)]
    assert plain == [{k: v for k, v in r.items() if k != "t_wall"} for r in commands(whole.folder)]


def test_recorded_the_session_gives_the_same_betas(whole: Steered) -> None:
    found = process_runs(whole.folder, settings=whole.settings.estimate)
    live = {m.trial: m for m in whole.rig.recorder.of(wire.Beta) if m.final and m.invalid is None}
    for run in found.runs:
        for beta in run.finals:
            assert beta.beta.tobytes() == live[beta.event.trial].beta.data, beta.event.trial
            assert beta.event.stimulus == live[beta.event.trial].stimulus
    assert sum(len(run.finals) for run in found.runs) == len(live) == 3 * 8 - 1


def test_a_session_is_stopped_by_a_command(participant: Participant, tmp_path: Path) -> None:
    rig = Rig(settings_for(participant, tmp_path), FakeClock(), Recorder())
    desk = rig._daemon.desk
    assert not desk.stop.is_set()
    for _ in range(2):
        assert rig.request(requests.Control, token="end", command="stop") == {}
    assert desk.stop.is_set()
    rig._daemon.run(desk.stop)
    with pytest.raises(ProtocolError, match="the session is ending"):
        rig.request(requests.Control, token="p", command="pause")
    assert [m.state for m in rig.recorder.of(wire.Session)][-2:] == ["ending", "ended"]
    rig.leave()


def test_what_is_meant_for_another_session_is_refused(participant: Participant, tmp_path: Path) -> None:
    rig = Rig(settings_for(participant, tmp_path), FakeClock())
    (told,) = rig.recorder.of(wire.Session)
    for kind, fields in (
        (requests.Control, {"command": "stop", "token": "t"}),
        (requests.Mode, {"mode": "calibrate", "token": "t"}),
        (requests.CalibrationProgress, {"trials": 4}),
        (requests.Event, {"kind": "run_start", "run": 1}),
    ):
        with pytest.raises(AnotherSession, match=f"meant for session 01-01, this is {told.session}"):
            rig.request(kind, session="01-01", **fields)
    rig.request(requests.CalibrationProgress, session=told.session, trials=5)
    rig.request(requests.Event, session=told.session, kind="run_start", run=1)
    assert [(one.session, one.trials) for one in rig.recorder.of(wire.Calibration)] == [(told.session, 5)]
    assert rig.recorder.of(wire.Session)[-1].state == "running"
    rig.finish()
