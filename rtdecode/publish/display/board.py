"""What the page shows: a fold over the stream. No sockets, no threads."""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable
from time import monotonic, time
from typing import Any

from rtdecode import client as wire
from rtdecode import decoded
from rtdecode.publish.display.contact import Contact
from rtdecode.publish.display.counted import Counted
from rtdecode.publish.display.notices import Notices, text
from rtdecode.publish.display.numbers import finite, number
from rtdecode.publish.display.phase import PHASES, doing, phase
from rtdecode.publish.display.trials import Trials

TRACE_VOLUMES = 240
LATENCIES = 200
CURVE = 400
REGIONS = 6
CATEGORIES = 200
NO_CATEGORY = "no category told"
OTHERS = "other categories"


class Board:
    """State of the page.

    A message of another session than the last one's clears it: nothing of one participant stays for the next.

    Parameters
    ----------
    clock, wall : callable
        Monotonic and wall clock of this machine, in seconds.

    Attributes
    ----------
    version : int
        Grows with every message that changes what is shown.
    session : str
        Identifier of the session that is shown; empty before the first message.
    contact : Contact
        Told of heartbeats apart from the fold, at their receipt.
    notices : Notices
    trials : Trials
    """

    def __init__(self, clock: Callable[[], float] = monotonic, wall: Callable[[], float] = time) -> None:
        self.version = 0
        self.contact = Contact(clock, wall)
        self._clock = clock
        self.trials = Trials()
        self._clear("")

    def _clear(self, session: str) -> None:
        self.session = session
        self.notices = Notices()
        self._key = f"{session}-{secrets.token_hex(4)}"
        self._session: dict[str, Any] = {}
        self._run: dict[str, Any] = {}
        self._calibration: dict[str, Any] = {}
        self._curve: deque[list[float]] = deque(maxlen=CURVE)
        self._trace: deque[list[float | None]] = deque(maxlen=TRACE_VOLUMES)
        self._regions: tuple[str, ...] = ()
        self._match: dict[str, Any] = {}
        self._matches: deque[list[float | None]] = deque(maxlen=TRACE_VOLUMES)
        self._quality: dict[str, Any] = {}
        self._heard: tuple[float, float] | None = None
        self._collected = Counted()
        self._left_out = Counted()
        self._stimulus: dict[str, Any] = {}
        self._feedback: dict[str, Any] = {}
        self.trials = Trials(self.trials)
        self._latency: dict[str, deque[float]] = {}

    def apply(self, message: wire.Message) -> None:
        """Take one message of the stream."""
        if not isinstance(message.session, str):
            raise TypeError(f"expected a session that is a text, got {message.session!r}")
        if message.session and message.session != self.session:
            known, was = self.session, self.notices
            self._clear(message.session)
            if not known:
                self.notices = was  # what the page itself had to say before there was a session
            self.version += 1
        match message:
            case wire.Session():
                self._session = {
                    "identifier": self.session,
                    "participant": text(message.participant),
                    "state": text(message.state),
                    "mode": "decode" if message.mode == "decode" else "calibrate",
                    "calibration_runs": int(message.calibration_runs),
                    "pack": text(message.pack),
                    "categories": [text(name) for name in message.categories],
                    "absent": [text(name) for name in message.absent],
                    "censor_fd_mm": finite(message.censor_fd_mm),
                    "paused": bool(message.paused),
                    "bad_runs": [int(run) for run in message.bad_runs],
                }
            case wire.Run():
                self._started(message)
            case wire.Volume():
                self._volume(message)
            case wire.StimulusMatch():
                self._matched(message)
            case wire.Skipped():
                self.notices.skipped(message)
            case wire.Fault():
                self.notices.fault(message)
            case wire.Calibration():
                self._calibrated(message)
            case wire.Beta():
                self._beta(message)
            case wire.Score() if message.invalid is not None:
                self.notices.invalid(message)
                self.trials.score(message, ())
            case wire.Score():
                self.trials.score(message, self._session.get("categories", ()))
                self._timed("score", message)
            case wire.Caption():
                self.trials.caption(message)
                self._timed("caption", message)
            case wire.Preview() | wire.Reconstruction():
                self.trials.drawn(message)
                self._timed("preview" if isinstance(message, wire.Preview) else "picture", message)
            case wire.Feedback():
                self._fed(message)
            case _ if not decoded.figures(wire.topic_of(message)):
                return
        self.trials.figures(message)
        self.version += 1

    def acknowledge(self, key: str, number: int, count: int) -> bool:
        """Take `count` reports of a notice as known to the operator.

        Parameters
        ----------
        key, number, count
            As `state` gives them.

        Returns
        -------
        bool
            Whether there is such a notice, in the session that is shown.
        """
        found = key == self._key and self.notices.acknowledge(number, count)
        self.version += found
        return found

    def picture(self, key: str, number: int) -> bytes | None:
        """Return an encoded picture of the session that is shown.

        Parameters
        ----------
        key, number
            As `state` gives them. No two sessions share a key, so that no browser takes one's picture for the other's.
        """
        return self.trials.picture(number) if key == self._key else None

    def state(self) -> dict[str, Any]:
        """Return what the page needs of the fold."""
        return {
            "key": self._key,
            "session": self._session,
            "run": self._run,
            "calibration": self._calibration,
            "curve": list(self._curve),
            "notices": self.notices.state(),
            "trace": list(self._trace),
            "regions": list(self._regions),
            "match": {**self._match, "points": list(self._matches)} if self._match else {},
            "quality": self._quality,
            "collected": self._counts(),
            "left_out": self._left_out.totals.total(),
            "stimulus": self._stimulus,
            "feedback": self._feedback,
            "trials": self.trials.state(),
            "tally": self.trials.tally(),
            "latency": {name: _quantiles(values) for name, values in self._latency.items()},
        }

    def now(self) -> dict[str, Any]:
        """Return what the page needs that changes with time alone."""
        does = doing(self._session, self._run, self._calibration.get("note", ""), film=bool(self._match))
        shown = phase(
            does,
            self._session.get("state", ""),
            known=self.contact.known,
            alive=self.contact.alive,
            another=bool(self.session and self.contact.session) and self.session != self.contact.session,
            starved=self.notices.is_open("acquire", "no-volume"),
            alarming=self.notices.alarming,
            paused=bool(self._session.get("paused")),
        )
        return {
            "phase": shown,
            "says": PHASES[shown],
            "doing": does,
            "does": PHASES[does],
            "contact": self.contact.state(),
            "volume_age_s": self._volume_age_s(),
        }

    def _volume_age_s(self) -> float | None:
        if self._heard is None or self._run.get("state") != "started" or self._session.get("state") == "ended":
            return None
        return round(max(0.0, self.contact.since(*self._heard)), 1)

    def _started(self, message: wire.Run) -> None:
        run = int(message.run or 0)
        if run != self._run.get("number"):
            self._trace.clear()
            self._quality, self._heard, self._regions = {}, None, ()
            self._matches.clear()
            self._match = {}
        expected = None if message.expected is None else int(message.expected)
        self._run = {"number": run, "state": text(message.state), "expected": expected}

    def _volume(self, message: wire.Volume) -> None:
        index, fd_mm, motion = int(message.volume or 0), finite(message.fd_mm), [finite(m) for m in message.motion]
        regions = {text(name): finite(value) for name, value in list(message.regions.items())[:REGIONS]}
        if tuple(regions) != self._regions:
            self._regions = tuple(regions)
            self._trace.clear()
        self._trace.append(
            [float(index), fd_mm, float(message.censored), *(motion + [None] * 6)[:6], *regions.values()]
        )
        self._heard = (float(message.t_published), self._clock())
        self._quality = {"volume": index, "fd_mm": fd_mm, "tsnr": finite(message.tsnr), "lag": int(message.lag)}
        self._timed("volume", message)

    def _matched(self, message: wire.StimulusMatch) -> None:
        """Take a point of the strip: volume, z and rank of the window; a gap where there is no match."""
        known = message.invalid is None
        index = float(int(message.volume or 0))
        self._matches.append([index, *(finite(value) if known else None for value in (message.z, message.rank))])
        self._match = {
            "film": text(message.film),
            "window": int(message.window),
            "parcels": int(message.parcels),
            "calibrated": bool(message.calibrated),
            "offset_s": finite(message.offset_s),
            "claim": finite(message.claim),
            "networks": {text(name): finite(value) for name, value in message.networks.items()},
            "invalid": "" if known else text(message.invalid),
            "asks": " to ".join(filter(None, (text(message.asks), text(message.next_film)))),
        }
        self._timed("match", message)

    def _calibrated(self, message: wire.Calibration) -> None:
        share = None if message.percentile is None else finite(message.percentile)
        interval = [finite(end) for end in message.interval]
        if len(interval) != 2 or None in interval:
            interval = []
        trials = int(message.trials)
        self._calibration = {
            "trials": trials,
            "percentile": share,
            "interval": interval,
            "note": text(message.note),
            "top1": [finite(message.top1), finite(message.top1_chance)],
            "two_way": finite(message.two_way),
            "ceiling": finite(message.ceiling),
            "advice": text(message.advice),
            "why": text(message.why),
            "projected": _projected(message),
        }
        if share is None:
            return
        while self._curve and self._curve[-1][0] >= trials:  # the last word on as many trials counts
            self._curve.pop()
        low, high = interval or (share, share)
        self._curve.append([float(trials), share, low or 0.0, high or 0.0])

    def _beta(self, message: wire.Beta) -> None:
        trial, onset_s = text(message.trial), float(message.onset_s)
        when = [int(message.run or 0), onset_s]
        if not self._stimulus or when >= self._stimulus["when"]:
            self._stimulus = {
                "when": when,
                "trial": trial,
                "stimulus": text(message.stimulus),
                "category": self._category(message),
            }
        if not message.final:
            return
        if message.invalid is not None:
            self.notices.invalid(message)
            self._left_out.put(trial, True)
        else:
            category = self._category(message)
            known = category in self._collected.totals or len(self._collected.totals) < CATEGORIES
            self._collected.put(trial, category if known else OTHERS)

    def _category(self, message: wire.Beta) -> str:
        """Return a trial's condition, or the category that its stimulus is numbered in."""
        if message.condition:
            return text(message.condition)
        named = text(message.stimulus).rstrip("0123456789_-. ")
        return named if named in self._session.get("categories", ()) else NO_CATEGORY

    def _counts(self) -> list[list[Any]]:
        """Return the names of categories and their trials so far: those that the session names first, then others."""
        counts = self._collected.totals
        told = sorted(str(name) for name, count in counts.items() if count)
        names = dict.fromkeys([*self._session.get("categories", ()), *told])
        return [[name, counts[name]] for name in names]

    def _fed(self, message: wire.Feedback) -> None:
        """Take what the participant is to be shown."""
        self._feedback = {
            "score": text(message.score),
            "regions": [text(name) for name in message.regions],
            "target": text(message.target),
            "state": text(message.state),
            "value": finite(message.value),
            "step": None if message.step is None else int(message.step),
            "steps": int(message.steps),
            "threshold": finite(message.threshold),
            "reached": None if message.reached is None else bool(message.reached),
        }

    def _timed(self, name: str, message: wire.Message) -> None:
        took_ms = finite(message.stages.get("total"))
        if took_ms is not None:
            self._latency.setdefault(name, deque(maxlen=LATENCIES)).append(took_ms)


def _projected(message: wire.Calibration) -> list[list[float]]:
    """Return minutes ahead, trials, percentile rank and its interval of each time ahead."""
    parts = (
        message.ahead_min, message.ahead_trials, message.projected, message.projected_low, message.projected_high,
    )  # fmt: skip
    return [[number(value) for value in one] for one in zip(*parts, strict=False)]


def _quantiles(values: deque[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[math.ceil(0.99 * len(ordered)) - 1]}
