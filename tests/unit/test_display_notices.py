"""What is wrong: grouped, until acknowledged or over."""

from __future__ import annotations

from typing import Any

from rtdecode import client as wire
from rtdecode.publish.display.notices import EARLIER, GROUPS, TEXT, Notices


def fault(part: str, kind: str = "", reason: str = "", at_s: float = 0.0, **more: Any) -> wire.Fault:
    return wire.Fault(part=part, kind=kind, reason=reason, t_published=at_s, **more)


def test_faults_of_one_part_and_kind_are_one_notice_with_its_last_reason_and_both_times() -> None:
    notices = Notices()
    notices.fault(fault("decode", "worker", "code -9", 100.0, remedy="wait", degraded="no pictures"))
    notices.fault(fault("decode", "worker", "code 1", 130.0, remedy="look at the log"))
    notices.fault(fault("decode", "slow", "61 s", 120.0))
    first, second = notices.state()["new"]
    assert (first["title"], first["reason"], first["count"]) == ("decode", "code 1", 2)
    assert (first["first_s"], first["latest_s"]) == (100.0, 130.0)
    assert (first["remedy"], first["degraded"]) == ("look at the log", "")
    assert (second["reason"], second["count"]) == ("61 s", 1)


def test_faults_without_a_kind_are_grouped_by_what_they_say_but_for_numbers() -> None:
    notices = Notices()
    for reason in ("volume 3: bad", "volume 17: bad", "no such file"):
        notices.fault(fault("estimate", reason=reason))
    assert sorted((n["reason"], n["count"]) for n in notices.state()["new"]) == [
        ("no such file", 1),
        ("volume 17: bad", 2),
    ]


def test_a_fault_that_is_over_closes_those_of_its_part_and_kind_only() -> None:
    notices = Notices()
    for message in (fault("disk", "low"), fault("disk", "full"), fault("acquire", "low")):
        notices.fault(message)
    assert notices.alarming
    notices.fault(fault("disk", "low", at_s=9.0, over=True))
    assert [n["title"] for n in notices.state()["new"]] == ["acquire", "disk"]
    assert not notices.is_open("disk", "low")
    assert notices.is_open("disk", "full")
    (mended,) = notices.state()["earlier"]
    assert (mended["over"], mended["latest_s"]) == (True, 9.0)
    notices.fault(fault("network", "away", over=True))  # of what was never told
    assert len(notices.state()["new"]) == 2


def test_what_is_over_and_comes_again_is_new() -> None:
    notices = Notices()
    notices.fault(fault("disk", "low"))
    assert notices.acknowledge(notices.state()["new"][0]["number"], 1)
    notices.fault(fault("disk", "low", over=True))
    notices.fault(fault("disk", "low"))
    assert [n["count"] for n in notices.state()["new"]] == [1]


def test_an_acknowledged_notice_is_quiet_until_it_is_told_again() -> None:
    notices = Notices()
    notices.fault(fault("decode", "worker", "first"))
    number = notices.state()["new"][0]["number"]
    assert notices.acknowledge(number, 1)
    assert notices.state()["new"] == []
    assert not notices.alarming
    assert [n["reason"] for n in notices.state()["earlier"]] == ["first"]
    notices.fault(fault("decode", "worker", "second"))
    assert [(n["reason"], n["count"]) for n in notices.state()["new"]] == [("second", 2)]
    assert notices.alarming
    # What came after the operator looked is not acknowledged with what was seen.
    notices.fault(fault("decode", "worker", "third"))
    assert notices.acknowledge(number, 2)
    assert notices.alarming
    assert not notices.acknowledge(number + 99, 1)


def test_left_out_volumes_are_summed_up_under_faults_and_alarm_nobody() -> None:
    notices = Notices()
    for index in range(3):
        notices.skipped(wire.Skipped(run=2, volume=index, reason="truncated", t_published=500.0 + index))
    notices.skipped(wire.Skipped(run=2, path="x", reason="no image"))
    assert not notices.alarming
    notices.fault(fault("disk", "low", at_s=1.0))
    first, second = notices.state()["new"]
    assert first["kind"] == "fault"
    assert (second["kind"], second["count"], second["reason"]) == ("skipped", 4, "run 2: no image")
    assert second["remedy"]


def test_a_trial_without_a_result_is_counted_once() -> None:
    notices = Notices()
    notices.invalid(wire.Beta(trial="t9", invalid="all volumes missing"))
    notices.invalid(wire.Score(trial="t9", invalid="all volumes missing"))
    notices.invalid(wire.Score(trial="t10", invalid="too late"))
    (notice,) = notices.state()["new"]
    assert (notice["count"], notice["reason"]) == (2, "trial t10: too late")


def test_a_flood_stays_bounded() -> None:
    notices = Notices()
    for number in range(5 * GROUPS):
        notices.fault(fault("part", f"kind{number}", "x" * 10 * TEXT))
    state = notices.state()
    assert len(state["new"]) == GROUPS
    assert len(state["earlier"]) == EARLIER
    assert max(len(n["reason"]) for n in state["new"]) <= TEXT + 2
