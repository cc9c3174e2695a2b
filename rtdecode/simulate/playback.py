"""Plays a run in time: announces each trial, lets each volume go when its acquisition ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from rtdecode.clock import Clock

Announce = Callable[[dict[str, Any]], None]
Hold = Callable[[int], None]
OnVolume = Callable[[int, int], None]
Speed = float | Literal["max"]
Timed = tuple[float, dict[str, Any]]
"""When a message is announced, seconds after the start, and the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTrial:
    """A trial as it is announced; see `rtdecode.records.TrialEvent`."""

    trial: str
    onset_s: float
    duration_s: float
    stimulus: str
    condition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScript:
    """What happens in a run."""

    run: int
    n_volumes: int
    t_r_s: float
    trials: Sequence[ShownTrial]


class Player:
    """Keeps time and tells the experiment's side of the story.

    Parameters
    ----------
    clock : Clock
    speed : float or "max"
        How many times faster than the scanner, or without waiting at all.

    Raises
    ------
    ValueError
        If `speed` is not positive.
    """

    def __init__(self, clock: Clock, speed: Speed) -> None:
        self._clock = clock
        self._stopped = threading.Event()
        self.set_speed(speed)

    def set_speed(self, speed: Speed) -> None:
        """Go at another speed from the next run on.

        Raises
        ------
        ValueError
            If `speed` is not positive.
        """
        if speed != "max" and not speed > 0:
            raise ValueError(f"expected a positive speed or 'max', got {speed}")
        self._speed = speed

    def stop(self) -> None:
        """Let `play` end after the present volume; callable from any thread."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def play(
        self,
        script: RunScript,
        volumes: Iterable[NDArray[Any]],
        write: Callable[[int, NDArray[Any]], None],
        announce: Announce,
        on_volume: OnVolume,
    ) -> None:
        """Play one run.

        Each trial is announced at its onset, before the volume in whose acquisition the onset falls is
        written; each volume is written when its acquisition ends.

        Parameters
        ----------
        script : RunScript
        volumes : iterable of array
            One per repetition, made while waiting.
        write : callable
            Takes the index of a volume and the volume.
        announce : callable
            Takes a message.
        on_volume : callable
            Told (run, index) after each volume.
        """
        start_s = self._clock.monotonic()
        announce(
            {
                "kind": "run_start",
                "run": script.run,
                "expected_volumes": script.n_volumes,
                "t_r_s": script.t_r_s,
            }
        )
        pending = sorted(script.trials, key=lambda trial: trial.onset_s)
        written = 0
        for index, volume in enumerate(volumes):
            end_s = (index + 1) * script.t_r_s
            while pending and pending[0].onset_s < end_s:
                trial = pending.pop(0)
                self._until(start_s, trial.onset_s)
                announce(_trial_message(script.run, trial))
            self._until(start_s, end_s)
            write(index, volume)
            written += 1
            on_volume(script.run, index)
            if self.stopped:
                return
        announce({"kind": "run_end", "run": script.run, "volumes": written})

    def _until(self, start_s: float, offset_s: float) -> None:
        if self._speed != "max":
            self._clock.sleep(max(0.0, start_s + offset_s / self._speed - self._clock.monotonic()))


def _trial_message(run: int, trial: ShownTrial) -> dict[str, Any]:
    return {
        "kind": "trial",
        "run": run,
        "trial": trial.trial,
        "onset_s": trial.onset_s,
        "duration_s": trial.duration_s,
        "stimulus": trial.stimulus,
        "condition": trial.condition,
    }


def replayed_at(messages: Iterable[dict[str, Any]], period_s: float) -> Iterator[Timed]:
    """Say when what a `Player` announced is due in a replay of its volumes, all runs in one, one each period.

    Parameters
    ----------
    messages : iterable of dict
        As announced.
    period_s : float
        Time between two volumes of the replay, seconds.
    """
    begun, t_r_s = 0, period_s
    for message in messages:
        volumes = 0.0
        match message["kind"]:
            case "run_start":
                t_r_s = message["t_r_s"]
            case "trial":
                volumes = message["onset_s"] / t_r_s
            case "run_end":
                begun += message["volumes"]
        yield (begun + volumes) * period_s, message


def unheard(message: dict[str, Any]) -> None:
    """Announce to nobody."""


def nothing(run: int, volume: int) -> None:
    """Take no notice of a volume."""


def free(run: int) -> None:
    """Hold no run back."""
