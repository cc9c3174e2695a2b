"""Announcements are judged before the experiment is told yes."""

from __future__ import annotations

import re

import pytest

from rtdecode.errors import ProtocolError
from rtdecode.records import RunEnd, RunStart, TrialEvent
from rtdecode.session.announcements import Announcements
from rtdecode.session.run_state import Progress

OPEN = Progress(closed=2, run=3, volumes=20, scanned_s=30.0)


def trial(name: str, run: int = 3, onset_s: float = 28.0, stimulus: str | None = "cat01") -> TrialEvent:
    return TrialEvent(run=run, trial=name, onset_s=onset_s, duration_s=1.0, stimulus=stimulus)


def make(*taken: TrialEvent | RunStart | RunEnd) -> Announcements:
    made = Announcements(["cat01", "dog02"], final_at_s=8.0)
    for item in taken:
        made.take(item)
    return made


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (trial("b", run=2), "run 2 is over"),
        (RunStart(run=1, expected=None, t_r_s=None), "run 1 is over"),
        (RunEnd(run=2, volumes=10), "run 2 is over"),
        (trial("a", onset_s=30.0), "announced before"),
        (trial("b"), r"begins when trial 'a' does, 28 s"),
        (RunStart(run=3, expected=41, t_r_s=None), "announced otherwise before"),
    ],
)
def test_what_can_have_no_result_is_refused(item: TrialEvent | RunStart | RunEnd, reason: str) -> None:
    desk = make(trial("a"), RunStart(run=3, expected=40, t_r_s=None))
    assert not desk.repeated(item)
    with pytest.raises(ProtocolError, match=reason):
        desk.judge(item, OPEN)


@pytest.mark.parametrize(
    ("item", "doubt"),
    [
        (trial("b", onset_s=27.0, stimulus="no-such"), "'no-such', which is none of decode.stimuli"),
        (trial("b", onset_s=27.0, stimulus=None), "shows no stimulus"),
        (trial("b", onset_s=2.0), "28 s after its onset"),
        (RunStart(run=3, expected=None, t_r_s=None), "30 s after the scanner began it; if a run to come .* run 4"),
        (RunStart(run=7, expected=None, t_r_s=None), "the next that the scanner begins is run 4"),
    ],
)
def test_what_is_doubtful_is_taken_with_a_word(item: TrialEvent | RunStart, doubt: str) -> None:
    (said,) = make(trial("a")).judge(item, OPEN)
    assert re.search(doubt, said)


@pytest.mark.parametrize(
    "item",
    [
        trial("b", onset_s=25.0),
        trial("b", run=4, onset_s=2.0),
        TrialEvent(run=3, trial="c", onset_s=1e3, duration_s=1.0, stimulus="own-name", condition="dog02"),
        RunStart(run=4, expected=40, t_r_s=1.5),
        RunEnd(run=3, volumes=40),
    ],
)
def test_the_rest_is_taken_without_one(item: TrialEvent | RunStart | RunEnd) -> None:
    assert make(trial("a")).judge(item, OPEN) == []


def test_a_run_may_be_announced_with_its_first_volumes() -> None:
    dummies = Progress(closed=2, run=3, volumes=8, scanned_s=12.0)
    assert make().judge(RunStart(run=3, expected=40, t_r_s=1.5), dummies) == []


@pytest.mark.parametrize("item", [trial("a"), RunStart(run=3, expected=40, t_r_s=1.5), RunEnd(run=3, volumes=40)])
def test_what_is_announced_again_after_a_lost_answer_is_known(item: TrialEvent | RunStart | RunEnd) -> None:
    assert not make().repeated(item)
    assert make(item).repeated(item)
