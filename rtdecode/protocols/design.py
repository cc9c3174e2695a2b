"""A protocol laid out in time: every row of every run, the same for the same protocol and participant."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rtdecode.protocol_file import Block, PlannedRun, Protocol
from rtdecode.stimuli import is_baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Something that happens in a run.

    Attributes
    ----------
    onset_s, duration_s : float
        Seconds from the start of the run's volume 0.
    condition : str
    stimulus : str or None
    trial : str or None
        Name to announce it by; None for rest, which is not announced.
    block : int
        Which block of the run it is of, from 1.
    feedback : {"none", "continuous", "after"}
        Of its block.
    """

    onset_s: float
    duration_s: float
    condition: str
    stimulus: str | None
    trial: str | None
    block: int
    feedback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidOut:
    """A run in time.

    Attributes
    ----------
    run : int
        From 1.
    plan : PlannedRun
    volumes : int
        That it needs, or has by the protocol.
    rows : tuple of Row
        By onset.
    """

    run: int
    plan: PlannedRun
    volumes: int
    rows: tuple[Row, ...]


def lay_out(protocol: Protocol, participant: str) -> tuple[LaidOut, ...]:
    """Draw orders and pauses of a participant, from the protocol's seed and the participant's label.

    Each stimulus of a set is shown as often as any other, give or take one, over all runs of one purpose.
    """
    rng = np.random.default_rng([protocol.seed, zlib.crc32(participant.encode())])
    decks: dict[tuple[str, tuple[str, ...]], Iterator[tuple[str, str]]] = {}
    runs = []
    for number, plan in enumerate(protocol.runs, start=1):
        rows: list[Row] = []
        at_s, place, shown = plan.start_s, 0, 0
        for _ in range(plan.cycles):
            for block in plan.blocks:
                place += 1
                key = (plan.purpose, block.stimuli)
                deck = decks.setdefault(key, _deck(protocol, block, rng)) if block.stimuli else None
                if block.paired:
                    deck = iter([(block.stimuli[0], protocol.stimuli[block.stimuli[0]][shown])])
                for _ in range(block.trials):
                    name, stimulus = next(deck) if deck is not None else ("", None)
                    if stimulus is not None:
                        shown = protocol.stimuli[name].index(stimulus)
                    condition = block.condition or name
                    rests = stimulus is None and is_baseline(condition)
                    told = None if rests else f"r{number:02d}t{_announced(rows):03d}"
                    rows.append(
                        Row(
                            onset_s=round(at_s, 3),
                            duration_s=block.duration_s,
                            condition=condition,
                            stimulus=stimulus,
                            trial=told,
                            block=place,
                            feedback=block.feedback,
                        )
                    )
                    at_s += block.duration_s + float(rng.uniform(*block.pause_s))
        needed = -(-round(at_s + plan.tail_s, 6) // protocol.t_r_s)
        runs.append(LaidOut(run=number, plan=plan, volumes=plan.volumes or int(needed), rows=tuple(rows)))
    return tuple(runs)


def _announced(rows: list[Row]) -> int:
    return sum(row.trial is not None for row in rows) + 1


def _deck(protocol: Protocol, block: Block, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yield set and stimulus for ever: all of them shuffled, again and again, none twice in a row."""
    every = [(name, stimulus) for name in block.stimuli for stimulus in protocol.stimuli[name]]
    last: tuple[str, str] | None = None
    while True:
        order = [every[i] for i in rng.permutation(len(every))]
        if order[0] == last and len(order) > 1:
            order = [*order[1:], order[0]]
        yield from order
        last = order[-1]
