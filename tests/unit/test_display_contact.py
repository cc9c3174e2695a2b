"""Whether the daemon lives: by the receipt of heartbeats and this machine's monotonic clock, and nothing else."""

from __future__ import annotations

import math

import pytest

from rtdecode import client as wire
from rtdecode.publish.display.contact import BEATS, LEAST_S, Contact
from tests.conftest import FakeClock


def test_alive_for_a_few_periods_after_a_heartbeat_and_no_longer(clock: FakeClock) -> None:
    contact = Contact(clock.monotonic, clock.wall)
    assert not contact.alive
    assert contact.state() == {"alive": False, "age_s": None, "since_s": None}
    contact.beat(wire.Heartbeat(every_s=5.0))
    told_at = clock.wall()
    clock.now += BEATS * 5.0
    assert contact.alive
    clock.now += 0.1
    assert contact.state() == {"alive": False, "age_s": 15.1, "since_s": told_at}
    contact.beat(wire.Heartbeat(every_s=0.1))
    clock.now += LEAST_S
    assert contact.alive
    clock.now += 0.1
    assert not contact.alive


@pytest.mark.parametrize("told_s", [0.0, 1e12, -1e12])
def test_the_daemons_clock_does_not_matter(clock: FakeClock, told_s: float) -> None:
    contact = Contact(clock.monotonic, clock.wall)
    contact.beat(wire.Heartbeat(t_published=told_s))
    assert contact.alive
    clock.now += 4
    assert not contact.alive


@pytest.mark.parametrize("every_s", [0.0, -1.0, 1e9, math.inf, math.nan])
def test_a_period_that_makes_no_sense_does_not_keep_a_dead_daemon_alive(clock: FakeClock, every_s: float) -> None:
    contact = Contact(clock.monotonic, clock.wall)
    contact.beat(wire.Heartbeat(every_s=every_s))
    clock.now += 3.5
    assert not contact.alive
