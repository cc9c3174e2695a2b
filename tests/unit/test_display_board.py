"""What the page shows of the stream, rule by rule."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest

from rtdecode import client as wire
from rtdecode.publish.display.board import NO_CATEGORY, Board
from rtdecode.publish.display.phase import PHASES
from rtdecode.publish.display.trials import REPLACED_PICTURES, REVISIONS, TRIALS
from tests.conftest import FakeClock

FOUND: dict[str, Any] = {
    "supported": True,
    "p_content": 0.02,
    "p_motion": 0.5,
    "plausible": ("cat",),
    "unknown": ("spatial",),
    "null": "repeats",
}


def decoded(revision: int, final: bool, evidence: float = 0.8, trial: str = "t1", **more: Any) -> list[wire.Message]:
    head: dict[str, Any] = {
        "session": "01-01",
        "run": 7,
        "trial": trial,
        "revision": revision,
        "final": final,
        "stages": {"total": 50.0 + revision},
    }
    score = wire.Score(**head, predicted="cat", evidence=evidence, chance=0.125, stimulus="s1", **{**FOUND, **more})
    caption = wire.Caption(**head, text=f"caption {revision}")
    picture = wire.Reconstruction(**head, image=bytes([revision]))
    return [score, caption, picture]


def session(session: str = "01-01", **more: Any) -> wire.Session:
    told = {"state": "running", "mode": "calibrate", "participant": "01", "pack": "tiny", "calibration_runs": 6, **more}
    return wire.Session(session=session, categories=("cat", "dog"), **told)


def volume(index: int, **more: Any) -> wire.Volume:
    told = {"motion": (0.0,) * 6, "stages": {"total": 20.0}, **more}
    return wire.Volume(session="01-01", run=1, volume=index, **told)


def beta(trial: str, *, final: bool = True, **more: Any) -> wire.Beta:
    return wire.Beta(session="01-01", run=1, trial=trial, revision=0, final=final, **more)


def board_of(*messages: wire.Message, clock: FakeClock | None = None) -> Board:
    time = clock or FakeClock()
    board = Board(time.monotonic, time.wall)
    for message in messages:
        board.apply(message)
    return board


def test_a_picture_is_revised_in_place() -> None:
    board = board_of(*decoded(0, final=False), *decoded(1, final=True))
    state = board.state()
    (trial,) = state["trials"]
    assert (trial["revision"], trial["final"], trial["caption"], trial["pictured"]) == (1, True, "caption 1", 1)
    assert board.picture(state["key"], trial["picture"]) == b"\x01"
    assert board.picture(state["key"], trial["picture"] - 1) == b"\x00"


def test_replaced_pictures_are_forgotten_in_the_end() -> None:
    board = board_of(*(decoded(revision, final=False)[2] for revision in range(REPLACED_PICTURES + 3)))
    key = board.state()["key"]
    assert board.picture(key, 2) is None
    assert board.picture(key, 3) is not None


def test_of_many_trials_the_last_are_kept_and_all_are_counted() -> None:
    board = board_of(session(mode="decode"))
    for number in range(TRIALS + 5):
        for message in decoded(0, final=True, trial=f"t{number}", condition="cat" if number % 2 else "dog"):
            board.apply(message)
    state = board.state()
    assert [trial["trial"] for trial in state["trials"]] == [f"t{number}" for number in range(5, TRIALS + 5)]
    assert state["tally"] == [(TRIALS + 5) // 2, TRIALS + 5]
    assert board.picture(state["key"], 1) is None
    assert board.picture(state["key"], 6) is not None


def test_each_revision_of_a_trial_is_kept_the_last_ones_of_many() -> None:
    board = board_of(*(decoded(revision, final=False, evidence=0.1 * revision)[0] for revision in (0, 1, 1, 2)))
    (trial,) = board.state()["trials"]
    assert trial["revisions"] == [[0, "cat", 0.0, True], [1, "cat", 0.1, True], [2, "cat", 0.2, True]]
    for revision in range(3, 30):
        board.apply(decoded(revision, final=False)[0])
    (trial,) = board.state()["trials"]
    assert [one[0] for one in trial["revisions"]] == list(range(30 - REVISIONS, 30))


def test_feedback_is_shown_and_a_paused_session_and_a_bad_run_are_told() -> None:
    fed = wire.Feedback(session="01-01", score="difference", regions=("a", "b"), state="shown", value=math.nan, step=3,
                        steps=20, threshold=0.5, reached=True)  # fmt: skip
    board = board_of(wire.Heartbeat(session="01-01"), session(paused=True, bad_runs=(2, 4)), fed)
    board.contact.beat(wire.Heartbeat(session="01-01"))
    state = board.state()
    assert state["feedback"] == {
        "score": "difference", "regions": ["a", "b"], "target": "", "state": "shown", "value": None, "step": 3,
        "steps": 20, "threshold": 0.5, "reached": True,
    }  # fmt: skip
    assert (state["session"]["paused"], state["session"]["bad_runs"]) == (True, [2, 4])
    assert (board.now()["phase"], board.now()["says"]) == ("paused", "decoding is paused")
    board.apply(wire.Fault(session="01-01", part="disk", reason="full"))
    assert board.now()["phase"] == "fault"


def held(thing: object) -> int:
    """Count everything that an object holds, to the bottom."""
    seen: set[int] = set()
    left, count = [thing], 0
    while left:
        one = left.pop()
        if id(one) in seen or callable(one) or isinstance(one, (str, bytes, int, float, type(None))):
            count += id(one) not in seen
            continue
        seen.add(id(one))
        count += 1
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, (list, tuple, set, deque)):
            left += one
        else:
            names = getattr(type(one), "__slots__", ())
            left += [getattr(one, name) for name in names] + list(getattr(one, "__dict__", {}).values())
    return count


def test_two_hours_of_messages_leave_the_board_as_large_as_one() -> None:
    board = board_of(session(mode="decode"))
    sizes = []
    for at in range(3 * 2100):  # trials; each of another category, as an experiment's mistake may make them
        trial = f"t{at}"
        board.apply(wire.Run(session="01-01", run=1 + at // 300, state="started"))
        board.apply(volume(at, regions={"ffa": 0.5}))
        board.apply(beta(f"c{at}", condition=f"category {at}"))
        board.apply(beta(f"d{at}", invalid="no volumes"))
        board.apply(wire.Fault(session="01-01", part="disk", reason=f"full {at}"))
        board.apply(wire.Fault(session="01-01", part=f"part {at}", kind="x", reason="full"))
        board.apply(wire.Skipped(session="01-01", run=1, volume=at, reason="truncated"))
        for message in decoded(0, final=True, trial=trial, condition="cat"):
            board.apply(message)
        if at % 2100 == 2099:
            sizes.append(held(board))
    assert board.state()["tally"] == [6300, 6300]
    assert board.state()["left_out"] == 6300
    assert sum(count for _, count in board.state()["collected"]) == 6300
    assert max(sizes) - min(sizes) < 20, sizes  # empty places of a queue, not one for each trial


@pytest.mark.parametrize("supported", [True, False])
def test_support_and_what_it_rests_on_are_shown(supported: bool) -> None:
    (trial,) = board_of(*decoded(0, final=True, supported=supported, claim=3.5)).state()["trials"]
    told = {name: trial[name] for name in (*FOUND, "claim")}
    assert told == {**FOUND, "supported": supported, "plausible": ["cat"], "unknown": ["spatial"], "claim": 3.5}


def test_a_score_of_an_older_daemon_is_shown_as_not_supported() -> None:
    old = wire.Score(session="01-01", trial="t1", predicted="cat", evidence=0.8, chance=0.125)
    (trial,) = board_of(old).state()["trials"]
    assert (trial["supported"], trial["plausible"], trial["unknown"], trial["claim"]) == (False, [], [], None)


def test_a_trial_without_a_result_is_shown_as_one_and_not_counted() -> None:
    invalid = wire.Score(session="01-01", trial="t9", invalid="all volumes missing", final=True, condition="cat")
    state = board_of(session(mode="decode"), *decoded(0, final=True, condition="cat"), invalid).state()
    assert [trial.get("invalid") for trial in state["trials"]] == [None, "all volumes missing"]
    assert state["tally"] == [1, 1]


def test_the_learning_curve_grows_and_begins_again_with_a_new_calibration() -> None:
    def status(trials: int, share: float | None = None, interval: tuple[float, ...] = ()) -> wire.Calibration:
        return wire.Calibration(trials=trials, percentile=share, interval=interval)

    board = board_of(status(5), status(10, 0.6, (0.5, 0.7)), status(20, 0.0, (0.0, 0.0)))
    assert board.state()["curve"] == [[10, 0.6, 0.5, 0.7], [20, 0.0, 0.0, 0.0]]
    board.apply(status(10, 0.55, (0.4, 0.7)))
    assert board.state()["curve"] == [[10, 0.55, 0.4, 0.7]]


def test_what_more_trials_would_bring_is_shown() -> None:
    ahead = {"ahead_min": (5.0, 10.0), "ahead_trials": (75, 150), "projected": (0.8, 0.85)}
    around = {"projected_low": (0.78, 0.8), "projected_high": (0.82, 0.9)}
    told = {"top1": 0.3, "top1_chance": 0.04, "two_way": 0.9, "ceiling": 0.97, "advice": "go on", "why": "it pays"}
    state = board_of(wire.Calibration(trials=40, percentile=0.75, **ahead, **around, **told)).state()["calibration"]
    assert state["projected"] == [[5.0, 75.0, 0.8, 0.78, 0.82], [10.0, 150.0, 0.85, 0.8, 0.9]]
    assert (state["top1"], state["two_way"], state["ceiling"]) == ([0.3, 0.04], 0.9, 0.97)
    assert (state["advice"], state["why"]) == ("go on", "it pays")


def test_numbers_of_a_calibration_that_are_none_are_not_drawn() -> None:
    board = board_of(wire.Calibration(trials=10, percentile=math.nan, interval=(math.nan, math.inf), note="so far"))
    assert board.state()["curve"] == []
    told = board.state()["calibration"]
    assert (told["trials"], told["percentile"], told["interval"], told["note"]) == (10, None, [], "so far")
    assert (told["top1"], told["two_way"], told["ceiling"], told["projected"]) == ([None, None], None, None, [])
    board.apply(wire.Calibration(trials=20, percentile=0.7, interval=(math.nan, 0.8)))
    assert board.state()["curve"] == [[20, 0.7, 0.7, 0.7]]


def test_a_new_run_clears_the_trace_and_every_change_counts() -> None:
    board = board_of(wire.Run(session="01-01", run=1, state="started"), volume(0))
    before = board.version
    board.apply(wire.Run(session="01-01", run=2, state="started"))
    assert board.state()["trace"] == []
    assert board.state()["quality"] == {}
    assert board.version == before + 1
    board.apply(wire.Embedding(session="01-01", run=2))
    assert board.version == before + 1


def test_the_trace_holds_motion_and_regions_with_gaps_where_there_is_no_number() -> None:
    told = {
        "motion": (0.1, 0.2, 0.3, 0.01, 0.02, 0.03),
        "fd_mm": 0.5,
        "censored": True,
        "regions": {"ffa": 1.5, "ppa": math.nan},
    }
    state = board_of(volume(4, tsnr=math.nan, **told)).state()
    assert state["trace"] == [[4.0, 0.5, 1.0, 0.1, 0.2, 0.3, 0.01, 0.02, 0.03, 1.5, None]]
    assert state["regions"] == ["ffa", "ppa"]
    assert state["quality"]["tsnr"] is None


def test_calibration_trials_are_counted_once_each_by_category() -> None:
    board = board_of(
        session(),
        beta("a", condition="cat", stimulus="x", final=False),
        beta("a", condition="cat", stimulus="x", onset_s=1.0),
        beta("b", stimulus="dog07", onset_s=5.0),  # named by its stimulus alone
        beta("c", condition="rest"),  # of no category of the pack
        beta("d", stimulus="picture-12"),
        beta("e", condition="dog", invalid="all volumes missing"),
    )
    state = board.state()
    assert state["collected"] == [["cat", 1], ["dog", 1], [NO_CATEGORY, 1], ["rest", 1]]
    assert state["left_out"] == 1
    assert (state["stimulus"]["stimulus"], state["stimulus"]["category"]) == ("dog07", "dog")


def test_a_new_session_leaves_nothing_of_the_last_one() -> None:
    board = board_of(
        session(),
        wire.Run(session="01-01", run=1, state="started", expected=9),
        volume(0, regions={"ffa": 1.0}),
        beta("a", condition="cat"),
        wire.Calibration(session="01-01", trials=10, percentile=0.6, interval=(0.5, 0.7)),
        wire.Fault(session="01-01", part="disk", reason="full"),
        wire.Skipped(session="01-01", run=1, volume=3, reason="truncated"),
        *decoded(0, final=True, condition="cat"),
    )
    old = board.state()
    assert board.picture(old["key"], 1) is not None
    board.apply(wire.Heartbeat(session="02-01"))
    empty = {**Board().state(), "key": board.state()["key"]}
    assert board.state() == empty
    assert board.state()["key"] != old["key"]
    assert board.picture(old["key"], 1) is None
    board.apply(session("02-01", mode="decode"))
    for message in decoded(0, final=True):
        board.apply(wire.Heartbeat(session="02-01"))
        board.apply(type(message)(**{**vars(message), "session": "02-01"}))
    (trial,) = board.state()["trials"]
    assert trial["picture"] == 2  # the number of a picture is used once, whatever the session


def test_the_same_session_after_another_has_another_key() -> None:
    board = board_of(session("01-01"))
    first = board.state()["key"]
    board.apply(session("02-01"))
    board.apply(session("01-01"))
    assert board.state()["key"] != first


def test_what_cannot_be_shown_is_refused_and_changes_no_trial() -> None:
    board = board_of(session(mode="decode"))
    for strange in (
        wire.Score(session="01-01", trial="t", evidence=math.nan, predicted="cat"),
        wire.Score(session="01-01", trial="t", evidence="much"),  # type: ignore[arg-type]
        wire.Reconstruction(session="01-01", trial="t", image=10**12),  # type: ignore[arg-type]
        wire.Heartbeat(session=5),  # type: ignore[arg-type]
    ):
        with pytest.raises((TypeError, ValueError)):
            board.apply(strange)
    assert board.state()["trials"] == []


def phase_of(board: Board) -> str:
    now = board.now()
    assert now["says"] == PHASES[now["phase"]]
    return str(now["phase"])


def test_the_lamp_tells_what_the_session_is_at() -> None:
    clock = FakeClock()
    board = board_of(clock=clock)

    def told(message: wire.Message) -> str:
        board.contact.beat(wire.Heartbeat())
        board.apply(message)
        return phase_of(board)

    run = {"session": "01-01", "expected": 9}
    assert phase_of(board) == "waiting"
    assert told(wire.Heartbeat(session="01-01")) == "asking"
    assert told(session(state="resuming")) == "resuming"
    assert told(session()) == "first-volume"
    assert told(wire.Run(run=1, state="started", **run)) == "calibrating"
    assert told(wire.Run(run=6, state="started", **run)) == "calibrating"
    assert told(wire.Run(run=6, state="ended", **run)) == "fitting"
    assert told(wire.Run(run=7, state="started", **run)) == "fitting"  # and no run 7 of 6
    assert told(session(mode="decode")) == "decoding"
    assert told(wire.Fault(session="01-01", part="disk", kind="low")) == "fault"
    assert told(wire.Fault(session="01-01", part="acquire", kind="no-volume")) == "no-volume"
    assert told(wire.Fault(session="01-01", part="acquire", kind="no-volume", over=True)) == "fault"
    assert told(wire.Fault(session="01-01", part="disk", kind="low", over=True)) == "decoding"
    assert told(session(mode="decode", state="ending")) == "ending"
    clock.now += 60
    assert phase_of(board) == "lost"  # it died while it was ending
    assert told(session(mode="decode", state="ended")) == "ended"
    clock.now += 60
    assert phase_of(board) == "ended"


def test_a_calibration_that_says_so_is_fitting() -> None:
    board = board_of(session(), wire.Run(session="01-01", run=3, state="ended"))
    board.contact.beat(wire.Heartbeat())
    assert phase_of(board) == "calibrating"
    board.apply(wire.Calibration(session="01-01", trials=50, note="fitting: 2 of 9 folds"))
    assert phase_of(board) == "fitting"


def test_a_second_visit_with_a_bundle_decodes_from_its_first_run() -> None:
    board = board_of(session(mode="decode", bundle="abc"), wire.Run(session="01-01", run=1, state="started"))
    board.contact.beat(wire.Heartbeat())
    assert phase_of(board) == "decoding"


def test_an_acknowledged_fault_no_longer_alarms_but_no_volume_stays_a_fact() -> None:
    board = board_of(session(mode="decode"), wire.Run(session="01-01", run=1, state="started"))
    board.contact.beat(wire.Heartbeat())
    board.apply(wire.Fault(session="01-01", part="disk", kind="low"))
    board.apply(wire.Fault(session="01-01", part="acquire", kind="no-volume"))
    state = board.state()
    for notice in state["notices"]["new"]:
        before = board.version
        assert not board.acknowledge("another session", notice["number"], 1)
        assert board.acknowledge(state["key"], notice["number"], 1)
        assert board.version == before + 1
    assert phase_of(board) == "no-volume"
    board.apply(wire.Fault(session="01-01", part="acquire", kind="no-volume", over=True))
    assert phase_of(board) == "decoding"


def test_seconds_since_the_last_volume_count_while_a_run_is_open() -> None:
    clock = FakeClock()
    board = board_of(session(), wire.Run(session="01-01", run=1, state="started"), clock=clock)
    assert board.now()["volume_age_s"] is None
    board.apply(volume(0, t_published=500.0))
    clock.now += 4
    assert board.now()["volume_age_s"] == 4.0
    board.apply(wire.Run(session="01-01", run=1, state="ended"))
    assert board.now()["volume_age_s"] is None


def test_a_volume_that_was_asked_for_later_is_as_old_as_the_daemon_says() -> None:
    clock = FakeClock()
    board = board_of(clock=clock)
    board.contact.beat(wire.Heartbeat(t_published=590.0))
    board.apply(session())
    board.apply(wire.Run(session="01-01", run=1, state="started"))
    board.apply(volume(0, t_published=500.0))
    clock.now += 2
    assert board.now()["volume_age_s"] == 92.0
    board.contact.beat(wire.Heartbeat(t_published=-3000.0))  # its clock was set back
    assert board.now()["volume_age_s"] == 2.0


def match(index: int, **more: Any) -> wire.StimulusMatch:
    told = {"film": "f", "z": 2.0, "rank": 0.9, "window": 20, "parcels": 50, "final": True, "claim": 3.0, **more}
    return wire.StimulusMatch(session="01-01", run=1, volume=index, **told)


def test_a_film_has_a_strip_with_gaps_where_there_is_no_match() -> None:
    board = board_of(session(), wire.Run(session="01-01", run=1, state="started"), match(0))
    board.apply(match(1, invalid="moved", z=0.0))
    board.apply(match(2, z=-1.5, rank=0.1, networks={"Vis": 1.0, "Default": math.nan}, offset_s=3.0, calibrated=True))
    state = board.state()["match"]
    assert state["points"] == [[0.0, 2.0, 0.9], [1.0, None, None], [2.0, -1.5, 0.1]]
    assert (state["film"], state["offset_s"], state["calibrated"], state["invalid"]) == ("f", 3.0, True, "")
    assert state["networks"] == {"Vis": 1.0, "Default": None}
    assert board.now()["doing"] == "watching"


def test_what_the_protocol_asks_of_a_film_is_shown() -> None:
    board = board_of(session(), wire.Run(session="01-01", run=1, state="started"), match(0))
    assert board.state()["match"]["asks"] == ""
    board.apply(match(1, asks="pause"))
    assert board.state()["match"]["asks"] == "pause"
    board.apply(match(2, asks="switch", next_film="calm"))
    assert board.state()["match"]["asks"] == "switch to calm"


def test_the_next_run_begins_without_a_film() -> None:
    board = board_of(session(), wire.Run(session="01-01", run=1, state="started"), match(0))
    board.apply(wire.Run(session="01-01", run=2, state="started"))
    assert board.state()["match"] == {}
    assert board.now()["doing"] == "calibrating"
