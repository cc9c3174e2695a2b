"""What a misbehaving scanner does to an export folder, as a plan of small steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rtdecode.simulate.seeds import generator

FAULTS = {
    "slow": "written in place over one and a half periods",
    "in-place": "written in place, in pieces",
    "renamed": "written in pieces under a temporary name, then renamed",
    "preallocated": "allocated in full size as zeros, then filled",
    "truncated": "broken off for good",
    "unfilled": "allocated in full size as zeros, filled in part only",
    "dropped": "never written",
    "duplicated": "written, and once more under another name",
    "reordered": "changes places with the next volume, the last one with the one before",
    "late": "written long after its turn",
    "foreign": "three volumes of another series come around it",
    "restarted": "broken off; the series starts again as a new one",
    "silent": "written without file events but that of its creation, as on a network mount",
    "clock-jump": "from it on, the scanner's clock is an hour back",
}

_CLOCK_JUMP_S = -3600.0
_SLOW_PERIODS = 1.5
_QUICK_PERIODS = 0.3
_PIECES = 6
_FOREIGN_VOLUMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerFault:
    """Something that goes wrong at one volume.

    Attributes
    ----------
    kind : str
        One of `FAULTS`.
    volume : int or None
        Index in the recording, from 0; None for one that the seed picks.
    """

    kind: str
    volume: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation on one file.

    Attributes
    ----------
    at_s : float
        Seconds after the start.
    action : {"put", "allocate", "write", "rename"}
        Put: the whole content at once. Allocate: make it, zeros up to `stop`. Write: the bytes from `start` to
        `stop`. Rename: to `new_name`.
    name : str
        Path in the export folder.
    source : str
        File of the recording that the bytes are from.
    series : int
        0: as recorded. Else: relabelled as another series.
    start, stop : float
        Fractions of the content.
    new_name : str
    silent : bool
        Without file events.
    clock_s : float
        How far off the scanner's clock is, hence the time of change of the file.
    """

    at_s: float
    action: Literal["put", "allocate", "write", "rename"]
    name: str
    source: str
    series: int = 0
    start: float = 0.0
    stop: float = 1.0
    new_name: str = ""
    silent: bool = False
    clock_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Take:
    """One volume of one series, due at a slot of the period grid."""

    series: int
    volume: int
    slot: float
    kind: str = ""


def parse_fault(text: str) -> ScannerFault:
    """Read ``NAME`` or ``NAME@VOLUME``.

    Raises
    ------
    ValueError
        If the name is none of `FAULTS`, or the volume is not a number from 0.
    """
    kind, _, volume = text.partition("@")
    if kind not in FAULTS:
        raise ValueError(f"expected one of {', '.join(FAULTS)}, got {kind!r}")
    if "@" in text and not volume.isdecimal():
        raise ValueError(f"expected the number of a volume from 0 after @, got {volume!r}")
    return ScannerFault(kind=kind, volume=int(volume) if volume else None)


def make_plan(
    volumes: Sequence[Sequence[str]],
    faults: Sequence[ScannerFault],
    *,
    seed: int = 0,
    period_s: float = 2.0,
    late_s: float = 10.0,
) -> list[Step]:
    """Plan the replay of a recording, in order of time. The same arguments give the same plan.

    A fault that loses or delays bytes hits one file of its volume, the others come in time. After a restart, the
    other faults apply to the series that is finished.

    Parameters
    ----------
    volumes : sequence of sequence of str
        Names of the files of each volume, in the order in which the scanner writes them.
    faults : sequence of Fault
        At most one a volume.
    seed : int
    period_s : float
        Time between two volumes, seconds.
    late_s : float
        How long after its turn a late file comes, seconds.

    Raises
    ------
    ValueError
        If a volume is not in the recording or has two faults, if more are asked for than there are volumes, or
        if a time is not positive.
    """
    if period_s <= 0 or late_s <= 0:
        raise ValueError(f"expected positive times, got a period of {period_s} s and {late_s} s late")
    rng = generator(seed, "faults")
    takes = _takes(len(volumes), _placed(len(volumes), faults, rng))
    steps: list[Step] = []
    jumps = [period_s * (take.slot + 1) for take in takes if take.kind == "clock-jump"]
    for take in sorted(takes, key=lambda take: take.slot):
        steps += _steps(take, volumes[take.volume], rng, period_s, late_s)
    steps.sort(key=lambda step: step.at_s)
    return [replace(step, clock_s=_CLOCK_JUMP_S * sum(at_s <= step.at_s for at_s in jumps)) for step in steps]


def _placed(count: int, faults: Sequence[ScannerFault], rng: np.random.Generator) -> dict[int, str]:
    """Say which fault each volume has."""
    placed: dict[int, str] = {}
    for fault in sorted(faults, key=lambda fault: fault.volume is None):
        free = [volume for volume in range(count) if volume not in placed]
        if not free:
            raise ValueError(f"expected at most one fault for each of {count} volumes, got {len(faults)}")
        volume = fault.volume if fault.volume is not None else int(rng.choice(free))
        if volume not in free:
            raise ValueError(f"{fault.kind}@{volume}: expected a volume below {count} that has no other fault")
        placed[volume] = fault.kind
    return placed


def _takes(count: int, placed: dict[int, str]) -> list[_Take]:
    takes: list[_Take] = []
    series = slot = 0
    for at in sorted(volume for volume, kind in placed.items() if kind == "restarted"):
        takes += [_Take(series, volume, slot + volume) for volume in range(at)]
        takes.append(_Take(series, at, slot + at, "truncated"))
        series, slot = series + 1, slot + at + 1
    slots = [slot + volume for volume in range(count)]
    for volume, kind in placed.items():
        if kind == "reordered" and count > 1:
            other = volume + 1 if volume + 1 < count else volume - 1
            slots[volume], slots[other] = slots[other], slots[volume]
    takes += [_Take(series, volume, slots[volume], placed.get(volume, "")) for volume in range(count)]
    for at in sorted(volume for volume, kind in placed.items() if kind == "foreign"):
        series += 1
        takes += [_Take(series, i, slots[at] - 0.5 + i) for i in range(min(_FOREIGN_VOLUMES, count))]
    return takes


def _steps(
    take: _Take, sources: Sequence[str], rng: np.random.Generator, period_s: float, late_s: float
) -> Iterator[Step]:
    victim = int(rng.integers(len(sources)))
    for number, source in enumerate(sources):
        file = Step(
            at_s=period_s * (take.slot + (number + 1) / len(sources)),
            action="put",
            name=f"series-{take.series:02d}/{source}" if take.series else source,
            source=source,
            series=take.series,
        )
        hit = number == victim
        match take.kind:
            case "slow" | "in-place" | "preallocated" | "silent" | "renamed":
                yield from _in_pieces(file, take.kind, rng, period_s)
            case "truncated" | "unfilled" if hit:
                yield replace(file, action="allocate", stop=1.0 if take.kind == "unfilled" else 0.0)
                yield replace(file, action="write", stop=float(rng.uniform(0.2, 0.6)))
            case "dropped" if hit:
                pass
            case "late" if hit:
                yield replace(file, at_s=file.at_s + late_s)
            case "duplicated":
                yield file
                folder, _, name = file.name.rpartition("/")
                copy = f"{folder}/copy_of_{name}" if folder else f"copy_of_{name}"
                yield replace(file, at_s=file.at_s + _QUICK_PERIODS * period_s, name=copy)
            case _:
                yield file


def _in_pieces(file: Step, kind: str, rng: np.random.Generator, period_s: float) -> Iterator[Step]:
    """Write a whole file bit by bit; the first piece may end within the header."""
    name = f"{file.name}.part" if kind == "renamed" else file.name
    edges = sorted([10 ** rng.uniform(-4, -1), *rng.uniform(0.1, 0.95, _PIECES - 2)])
    lasts_s = (_SLOW_PERIODS if kind == "slow" else _QUICK_PERIODS) * period_s
    yield replace(file, action="allocate", name=name, stop=1.0 if kind == "preallocated" else 0.0)
    for number, (start, stop) in enumerate(zip([0.0, *edges], [*edges, 1.0], strict=True), start=1):
        at_s = file.at_s + lasts_s * number / _PIECES
        yield replace(
            file, at_s=at_s, action="write", name=name, start=float(start), stop=float(stop), silent=kind == "silent"
        )
    if kind == "renamed":
        yield replace(file, at_s=file.at_s + lasts_s, action="rename", name=name, new_name=file.name)
