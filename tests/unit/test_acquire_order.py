from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdecode.acquire.order import RunQueue
from rtdecode.acquire.source import Arrival
from rtdecode.records import Skipped


def arrival(index: int) -> Arrival:
    return Arrival(path=Path(f"{index}"), item=Skipped(run=1, volume=index, path=f"{index}", reason=""))


@given(order=st.permutations(range(12)), steps=st.lists(st.floats(0, 0.5), min_size=12, max_size=12))
def test_any_order_within_the_time_limit_comes_out_sorted_and_whole(order: list[int], steps: list[float]) -> None:
    queue, now, out = RunQueue(gap_timeout_s=1e9), 0.0, []
    for index, step in zip(order, steps, strict=True):
        now += step
        assert queue.takes(index)
        queue.offer(index, arrival(index), now)
        out += queue.release(now)
    assert [index for index, _ in out] == list(range(12))
    assert all(got is not None and got.path == Path(f"{index}") for index, got in out)
    assert not queue.held


@given(present=st.sets(st.integers(0, 30), min_size=1), data=st.data())
def test_each_index_comes_out_once_whatever_is_missing(present: set[int], data: st.DataObject) -> None:
    queue, now, out = RunQueue(gap_timeout_s=5.0), 0.0, []
    for index in data.draw(st.permutations(sorted(present))):
        now += data.draw(st.floats(0, 4))
        if queue.takes(index):
            queue.offer(index, arrival(index), now)
        out += queue.release(now)
    out += queue.release(now + 5.1)
    assert [index for index, _ in out] == list(range(max(present) + 1))
    assert all(got is None for index, got in out if index not in present)
    assert not queue.held


def test_an_absent_volume_is_given_up_only_once_a_later_one_waited_long_enough() -> None:
    queue = RunQueue(gap_timeout_s=5.0)
    queue.offer(1, arrival(1), 100.0)
    assert queue.release(104.9) == []
    assert [(index, got is None) for index, got in queue.release(105.0)] == [(0, True), (1, False)]
    assert not queue.takes(0)
    assert queue.next_index == 2


def test_a_volume_far_ahead_does_not_outrun_those_that_come_in_time() -> None:
    queue, out = RunQueue(gap_timeout_s=5.0), []
    queue.offer(9, arrival(9), 0.0)
    for index in range(9):
        queue.offer(index, arrival(index), 2.0 * index + 2)
        out += queue.release(2.0 * index + 2)
    assert [(index, got is None) for index, got in out] == [(index, False) for index in range(10)]


def test_a_taken_index_is_refused() -> None:
    queue = RunQueue(gap_timeout_s=5.0)
    queue.offer(3, arrival(3), 0.0)
    with pytest.raises(ValueError, match="taken"):
        queue.offer(3, arrival(3), 0.0)
