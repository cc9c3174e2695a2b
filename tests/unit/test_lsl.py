"""Markers and scores for the Lab Streaming Layer."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import pytest

from rtdecode import client as wire
from rtdecode.publish.lsl import CHANNELS, TOPICS, Outlets, follow, open_outlets
from tests.closing import RegulatingSession


class ListOutlet:
    """Of an LSL outlet it keeps: samples in their order, with their times."""

    def __init__(self) -> None:
        self.samples: list[tuple[list[Any], float]] = []

    def push_sample(self, x: list[Any], timestamp: float = 0.0) -> None:
        self.samples.append((x, timestamp))


def test_a_sample_has_the_time_of_publishing_by_the_clock_of_lsl() -> None:
    markers, scores = ListOutlet(), ListOutlet()
    outlets = Outlets(markers, scores, clock=lambda: 500.0, wall=lambda: 1000.0)
    outlets.checked(20.0)  # the daemon's clock is ahead: 1020 there is now
    outlets.push(wire.Score(trial="t1", revision=0, evidence=0.75, supported=True, predicted="cat", t_published=1018.5))
    outlets.push(wire.Feedback(volume=4, state="held", t_published=1030.0))  # not from the future
    (score, at), (held, later) = scores.samples
    assert dict(zip(CHANNELS, score, strict=True)) == pytest.approx(
        {"feedback_value": math.nan, "feedback_level": math.nan, "evidence": 0.75, "supported": 1.0}, nan_ok=True
    )
    assert (at, later) == (498.5, 500.0)
    assert all(map(math.isnan, held))
    assert [json.loads(sample[0])["marker"] for sample, _ in markers.samples] == ["score", "feedback held"]


def test_a_clock_that_jumps_is_marked_and_one_that_drifts_is_not() -> None:
    markers = ListOutlet()
    outlets = Outlets(markers, ListOutlet(), clock=lambda: 500.0)
    for ahead in (20.0, 20.01, 20.02, 5.02, 5.03):
        outlets.checked(ahead)
    (((text,), _),) = markers.samples
    assert json.loads(text) == {"marker": "clock jumped", "by_s": -15.0}


def test_an_inlet_receives_what_the_daemon_tells() -> None:
    pylsl = pytest.importorskip("pylsl", reason="no pylsl here: pip install 'rtdecode[lsl]'", exc_type=Exception)
    session = RegulatingSession()
    outlets = open_outlets("rtdecode-test")
    found = pylsl.resolve_byprop("name", "rtdecode-test-scores", timeout=10.0)
    if not found:
        session.close()
        pytest.skip("LSL streams cannot be found on this machine's network")
    inlet = pylsl.StreamInlet(found[0])
    inlet.open_stream(timeout=10.0)
    over = threading.Event()
    with wire.Client(*session.addresses, topics=TOPICS) as client, wire.Client("", session.server.requests) as asker:
        following = threading.Thread(target=follow, args=(client, outlets, over.is_set))
        following.start()
        asker.event(kind="trial", run=1, trial="t1", onset_s=1.0, duration_s=2.0)
        samples: list[list[float]] = []
        while len(samples) < 3:
            sample, _ = inlet.pull_sample(timeout=30.0)
            assert sample is not None
            samples.append(sample)
        over.set()
        following.join()
    session.close()
    held, shown, score = samples
    assert math.isnan(held[1])
    assert shown[1] == pytest.approx(session.levels[0], abs=1e-6)
    assert score[2:] == pytest.approx([session.levels[0], 0.0], abs=1e-6)
