import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rtdecode.records import BetaUpdate, Stamp, TrialEvent
from rtdecode.session.lanes import Closed, DecodeLanes, PictureLane, VolumeLane


def beta(trial: str, revision: int, final: bool = False) -> BetaUpdate:
    return BetaUpdate(
        stamp=Stamp(session="s", run=1, volume=revision, received_s=0.0, received_mono_s=0.0),
        event=TrialEvent(run=1, trial=trial, onset_s=0.0, duration_s=1.0),
        revision=revision,
        final=final,
        delay_s=1.0,
        beta=np.zeros(1, np.float32),
    )


class PictureLaneMachine(RuleBasedStateMachine):
    """The lane against a model: at most one waiting beta a trial, the newest; finals are never lost."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = PictureLane()
        self.model: OrderedDict[str, tuple[int, bool]] = OrderedDict()
        self.next: dict[str, int] = {}
        self.done: set[str] = set()
        self.superseded = 0

    @rule(trial=st.sampled_from("abc"), final=st.booleans())
    def put(self, trial: str, final: bool) -> None:
        if trial in self.done:
            return
        revision = self.next.get(trial, 0)
        self.next[trial] = revision + 1
        replaced = self.lane.put(beta(trial, revision, final))
        assert (replaced is not None) == (trial in self.model)
        self.superseded += trial in self.model
        self.model[trial] = (revision, final)
        if final:
            self.done.add(trial)

    @precondition(lambda self: self.model)
    @rule()
    def get(self) -> None:
        taken = self.lane.get(0)
        assert taken is not None
        trial, (revision, final) = self.model.popitem(last=False)
        assert (taken.event.trial, taken.revision, taken.final) == (trial, revision, final)

    @invariant()
    def agrees(self) -> None:
        assert len(self.lane) == len(self.model)
        assert self.lane.superseded == self.superseded


TestPictureLane = PictureLaneMachine.TestCase


def test_a_final_beta_is_not_replaced() -> None:
    lane = PictureLane()
    lane.put(beta("a", 1, final=True))
    assert lane.put(beta("a", 2)) is None
    taken = lane.get(0)
    assert taken is not None
    assert taken.final


def test_volume_lane_keeps_order_and_makes_the_producer_wait() -> None:
    lane: VolumeLane[int] = VolumeLane(2)

    def produce() -> None:
        for i in range(100):
            lane.wait_for_room()
            lane.put(i)

    producer = threading.Thread(target=produce)
    producer.start()
    got = []
    while len(got) < 100:
        assert len(lane) <= 2
        item = lane.get(10.0)
        assert item is not None
        got.append(item)
    producer.join()
    assert got == list(range(100))


def test_urgent_items_pass_a_full_lane_without_waiting_and_in_order() -> None:
    lane: VolumeLane[str] = VolumeLane(1)
    lane.put("volume")
    lane.put("event")
    assert [lane.get(0), lane.get(0)] == ["volume", "event"]


@pytest.mark.parametrize("lane", [VolumeLane(1), PictureLane()], ids=["volume", "picture"])
def test_a_closed_lane_is_emptied_then_says_so(lane: VolumeLane[BetaUpdate] | PictureLane) -> None:
    lane.put(beta("a", 0))
    lane.close()
    assert lane.get(0) is not None
    with pytest.raises(Closed):
        lane.get(0)
    with pytest.raises(Closed):
        lane.put(beta("a", 1))


def test_a_beta_goes_before_volumes_and_these_keep_their_order() -> None:
    lanes = DecodeLanes()
    volumes: list[Any] = [object(), object()]
    for volume in volumes:
        lanes.volumes.put(volume)
    newest = beta("t1", 0)
    lanes.pictures.put(newest)
    assert len(lanes) == 3
    assert lanes.volumes.oldest is volumes[0]
    assert [lanes.get(0) for _ in range(4)] == [newest, *volumes, None]
    assert lanes.volumes.oldest is None


@pytest.mark.parametrize("which", ["pictures", "volumes"])
def test_who_waits_for_both_lanes_is_woken_by_either(which: str) -> None:
    lanes = DecodeLanes()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(lanes.get()), daemon=True)
    thread.start()
    item: Any = beta("t1", 0)
    getattr(lanes, which).put(item)
    thread.join()
    assert got == [item]


def test_closed_lanes_are_emptied_then_say_so() -> None:
    lanes = DecodeLanes()
    item: Any = object()
    lanes.volumes.put(item)
    lanes.close()
    with pytest.raises(Closed):
        lanes.pictures.put(beta("t1", 0))
    assert lanes.get() is item
    with pytest.raises(Closed):
        lanes.get()
