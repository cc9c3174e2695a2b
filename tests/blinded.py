"""Blinded sessions of the follower of feedback alone, as many as a statistic needs: no daemon, no scanner."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from rtdecode import client as wire
from rtdecode.blinding.allocation import ARMS, Arm, Seal, allocate
from rtdecode.protocol_file import ShamPlan
from rtdecode.publish import messages
from rtdecode.publish.publisher import Publisher
from rtdecode.records import RegisteredVolume, Stamp
from rtdecode.score_settings import FeedbackSettings
from rtdecode.session.blind import Blind, Place, withheld
from rtdecode.session.feedback import Feedback
from tests.conftest import FakeClock

T_R_S = 1.5
REGIONS = ("own", "other")
SETTINGS = FeedbackSettings(
    score="region", regions=("own",), baseline_volumes=8, unit="z", half_life_s=3.0, bounds=(-3.0, 3.0), threshold=1.0
)


def seal_for(arm: Arm, key: bytes, participant: str = "01", protocol: str = "protocol") -> Seal:
    """An allocation in which the participant has that arm."""
    while True:
        (seal,) = allocate(protocol, [participant], key)
        if seal.arm(key) == arm:
            return seal


def registered(run: int, index: int, own: float, other: float, *, censored: bool = False) -> RegisteredVolume:
    nothing: Any = np.zeros(1, np.float32)
    stamp = Stamp(session="s", run=run, volume=index, received_s=0.0, received_mono_s=time.perf_counter())
    return RegisteredVolume(
        stamp=stamp, masked=nothing, matrix=np.eye(4), motion=np.zeros(6), fd_mm=0.1, dvars=1.0, tsnr=50.0, fit=0.99,
        regions=dict(zip(REGIONS, (own, other), strict=True)), parcels={"atlas": {"1": own}}, censored=censored,
        t_r_s=T_R_S,
    )  # fmt: skip


class Observed:
    """All that operator, client and participant can observe of a session, but for the values."""

    rejected = 0
    broken = None

    def __init__(self) -> None:
        self.sent: list[tuple[float, str, int, wire.Message]] = []
        self.kept: list[tuple[float, str, int]] = []
        self.journalled: list[tuple[float, int]] = []

    def send(self, topic: bytes, payload: bytes) -> None:
        self.sent.append((time.perf_counter(), topic.decode(), len(payload), wire.unpack(topic, payload)))

    def output(self, topic: bytes, payload: bytes) -> int:
        self.kept.append((time.perf_counter(), topic.decode(), len(payload)))
        return len(self.kept) - 1

    def published(self, places: Any) -> Iterator[bytes]:
        raise NotImplementedError

    def seal(self, place: str, envelope: bytes) -> None:
        self.journalled.append((time.perf_counter(), len(place) + len(envelope)))


Signal = Callable[[int, int, wire.Feedback | None], tuple[float, float]]
"""What two regions do at a volume of a run, given what was shown last."""


def session(
    arm: Arm,
    plan: ShamPlan,
    signal: Signal,
    rng: np.random.Generator,
    *,
    runs: int = 2,
    volumes: int = 40,
    donor: dict[Place, float] | None = None,
    settings: FeedbackSettings = SETTINGS,
    lost: float = 0.05,
) -> tuple[Observed, Blind]:
    """Let the follower and the publisher work through a session."""
    key = rng.bytes(32)
    observed = Observed()
    blind = Blind(seal_for(arm, key), key, plan, f"s-{rng.bytes(4).hex()}", T_R_S, observed.seal, donor)
    follower = Feedback(settings, blind)
    publisher = Publisher("s-01", FakeClock(), observed, observed, "0123456789ab")
    logging.getLogger("rtdecode.session").info("the session is blinded")
    shown: wire.Feedback | None = None
    for run in range(1, runs + 1):
        for index in range(volumes):
            own, other = signal(run, index, shown)
            if rng.random() < lost:
                told = replace(follower.skipped(run, "missing"), run=run, volume=index)
                publisher.publish(told)
                continue
            volume = registered(run, index, own, other, censored=bool(rng.random() < lost))
            publisher.publish(messages.headed(messages.volume(withheld(volume, blind), 0), volume.stamp, {}))
            told = follower.add(volume, took_s=0.0)
            took_ms = 1e3 * (time.perf_counter() - volume.stamp.received_mono_s)
            publisher.publish(messages.headed(told, volume.stamp, {"total": took_ms}))
            if told.state == "shown":
                shown = told
    return observed, blind


def noise(rng: np.random.Generator, rho: float = 0.5) -> Iterator[float]:
    """A red series of variance 1."""
    last = float(rng.standard_normal())
    while True:
        yield last
        last = rho * last + float(np.sqrt(1 - rho * rho) * rng.standard_normal())


def arms(n: int, rng: np.random.Generator) -> list[Arm]:
    """As many sessions of each arm, mixed."""
    return [ARMS[i] for i in rng.permutation(np.arange(n) % 2)]
