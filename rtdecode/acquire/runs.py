"""Makes runs of series and gives each volume its index.

**Where a series begins.** The index of a volume is its number less the number of the first. That number is what the
settings say; else 0 if a volume 0 is there when the series is first seen, complete or not; else what the format has as
its rule (1 in DICOM, in PAR files and in NIfTI of several volumes, 0 in dumps); else, for files that are numbered by
their names alone, what an earlier series of the session began with; else the first volume waits until a second is
there, or as long as a gap is waited for, and 1 is taken unless a 0 has come.

**When it becomes a run.** A listing of a folder that is being written to may hold a file and lack one that came before
it. So a series becomes a run at a look that meets no other new one: what earlier runs still lacked was in that listing.

**Its timing** is judged before its first volume goes on (`timing`); one that cannot be true waits as long for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rtdecode.acquire.intake import Finding, first_began
from rtdecode.acquire.order import Run, RunQueue
from rtdecode.acquire.series import Selection
from rtdecode.acquire.source import Arrival
from rtdecode.acquire.stored import Identity, StoredVolume
from rtdecode.acquire.timing import Timing
from rtdecode.clock import Clock
from rtdecode.errors import named
from rtdecode.records import KnownRun, Skipped, Stamp, Volume, frozen
from rtdecode.settings import ScannerSettings

_LARGEST_JUMP = 5000


class Runs:
    """The runs of a session.

    Parameters
    ----------
    settings : ScannerSettings
    session : str
        Session identifier for the stamps.
    clock : Clock
    selection : Selection
        Is told of series that have another shape than the first run.
    known : sequence of KnownRun
        Runs of an interrupted session: they keep their numbers, and what had been dealt with is passed over.
    """

    def __init__(
        self, settings: ScannerSettings, session: str, clock: Clock, selection: Selection, known: Sequence[KnownRun]
    ) -> None:
        self._settings = settings
        self._session = session
        self._clock = clock
        self._selection = selection
        self._dummies = settings.n_dummy if settings.dummies_exported else 0
        self._uids: set[str] = set()
        self._held: dict[str, list[tuple[Path, StoredVolume]]] = {}
        self._again: list[tuple[Path, str]] = []
        self._met_new = False
        self._held_since_s: dict[str, float] = {}
        self._counted_from: int | None = None
        self._shape: tuple[int, ...] | None = None
        self._timings: dict[str, Timing] = {}
        self._runs = {run.series_uid: self._resumed(run) for run in known}

    def take(self, findings: list[Finding], begun: Callable[[], list[Identity]], now_s: float) -> list[Arrival]:
        """Take what was found; return what may go on, in index order per run.

        Parameters
        ----------
        findings : list of Finding
            What is lost first, then volumes in order.
        begun : callable
            Returns the volumes whose files are not complete yet.
        now_s : float
        """
        out: list[Arrival] = []
        before = set(self._held)
        for finding in findings:
            if finding.stored is None:
                out.extend(self._lost(finding, now_s))
            else:
                out.extend(self._enter(finding.path, finding.stored, now_s))
        self._met_new = not self._held.keys() <= before
        if not self._met_new:
            for uid in self._in_order():
                out.extend(self._go_on(uid, begun, now_s))
            for path, uid in self._again:
                out.append(_surplus(path, self._latest(self._runs.get(uid)), "duplicate: the content has come before"))
            self._again = []
        out.extend(self._release(now_s))
        return out

    @property
    def met_new(self) -> bool:
        """Whether the last look met a new series, so that another one is worth it at once."""
        return self._met_new

    # runs -------------------------------------------------------------------------------------------------

    def _enter(self, path: Path, stored: StoredVolume, now_s: float) -> list[Arrival]:
        """Put a volume into its run, or to others of a series that is not one yet."""
        identity = stored.identity
        run = self._runs.get(identity.series_uid)
        if identity.uid in self._uids:
            self._again.append((path, identity.series_uid))
            return []
        if run is None and not self._fits(stored):
            return self._misfit(path, stored)
        self._uids.add(identity.uid)
        timing = self._timings.setdefault(identity.series_uid, Timing(self._settings.t_r_s))
        timing.learn(identity.instance, stored)
        if run is not None:
            return self._place(run, path, stored, now_s)
        self._held.setdefault(identity.series_uid, []).append((path, stored))
        self._held_since_s.setdefault(identity.series_uid, now_s)
        return []

    def _fits(self, stored: StoredVolume) -> bool:
        if self._shape in (None, stored.data.shape):
            return True
        return self._selection.wanted(stored.identity, stored.origin)

    def _misfit(self, path: Path, stored: StoredVolume) -> list[Arrival]:
        """Leave a series out, and tell of it once."""
        identity = stored.identity
        why = f"of another shape: {stored.data.shape}, the first run has {self._shape}"
        self._selection.leave_out(identity, why)
        reason = self._selection.refusal(identity, stored.origin) or why
        return [_surplus(path, 0, reason)] if self._selection.is_news(identity) else []

    def _in_order(self) -> list[str]:
        """Return the series that wait, by when they were acquired where all tell, else by number."""
        identities = {uid: waiting[0][1].identity for uid, waiting in self._held.items()}
        began = first_began(stored.identity for waiting in self._held.values() for _, stored in waiting)
        return sorted(identities, key=lambda uid: (began.get(uid, 0.0), *identities[uid].order))

    def _go_on(self, uid: str, begun: Callable[[], list[Identity]], now_s: float) -> list[Arrival]:
        """Open the run of a series that waits, once it is clear what it counts from."""
        waiting = self._held[uid]
        if not self._fits(waiting[0][1]):  # the first run was not there yet when it was met
            del self._held[uid], self._held_since_s[uid]
            return self._misfit(*waiting[0])
        first = waiting[0][1].identity
        numbers = {identity.instance for identity in begun() if identity.series_uid == uid}
        numbers |= {stored.identity.instance for _, stored in waiting}
        waited = now_s - self._held_since_s[uid] >= self._settings.gap_timeout_s
        base = self._base(first, numbers, waited)
        if base is None or (not waited and self._timings[uid].needs_more(waiting[0][1])):
            return []
        del self._held[uid], self._held_since_s[uid]
        run = self._runs[uid] = self._opened(first, base, now_s)
        return [arrival for path, stored in waiting for arrival in self._place(run, path, stored, now_s)]

    def _base(self, identity: Identity, numbers: set[int], waited: bool) -> int | None:
        """Return the number of the first volume of a series; None while that may still become clear."""
        if self._settings.first_instance is not None:
            return self._settings.first_instance
        if identity.first is not None:
            return 0 if 0 in numbers else identity.first
        if 0 in numbers:
            self._counted_from = 0
        elif self._counted_from is None and (len(numbers) > 1 or waited):
            self._counted_from = 1
        return self._counted_from

    def _opened(self, identity: Identity, base: int, now_s: float) -> Run:
        taken = {run.number for run in self._runs.values()}
        number = identity.run if identity.run is not None and identity.run > 0 else len(taken) + 1
        while number in taken:
            number += 1
        return Run(number, base, RunQueue(self._settings.gap_timeout_s), opened_s=now_s)

    def _resumed(self, known: KnownRun) -> Run:
        queue = RunQueue(self._settings.gap_timeout_s, known.next_index)
        first = known.offset - self._dummies
        return Run(known.number, first, queue, resumed_at=known.next_index, opened_s=self._clock.monotonic())

    def _latest(self, run: Run | None) -> int:
        return run.number if run is not None else max((known.number for known in self._runs.values()), default=0)

    # volumes ----------------------------------------------------------------------------------------------

    def _index(self, run: Run, instance: int) -> int:
        return instance - run.first_instance - self._dummies

    def _plausible(self, run: Run, index: int) -> bool:
        return 0 <= index <= run.queue.next_index + _LARGEST_JUMP

    def _lost(self, finding: Finding, now_s: float) -> Iterator[Arrival]:
        """Report what could not be used; where it is a volume of a known run that is still wanted, in its place."""
        identity = finding.identity
        run = self._runs.get(identity.series_uid) if identity is not None else None
        if identity is None or run is None:
            yield _surplus(finding.path, 0 if finding.chosen else self._latest(None), finding.reason)
            return
        index = self._index(run, identity.instance)
        if 0 <= index < run.resumed_at:
            return
        if not self._plausible(run, index) or not run.queue.takes(index):
            yield _surplus(finding.path, run.number, finding.reason)
            return
        skipped = Skipped(run=run.number, volume=index, path=named(finding.path.name), reason=finding.reason)
        run.queue.offer(index, Arrival(path=finding.path, item=skipped), now_s)

    def _place(self, run: Run, path: Path, stored: StoredVolume, now_s: float) -> list[Arrival]:
        """Put a complete volume into its run, or say why it has no place."""
        instance = stored.identity.instance
        index = self._index(run, instance)
        self._shape = self._shape or stored.data.shape
        run.shape = run.shape or stored.data.shape
        announced = self._settings.n_volumes or stored.origin.volumes
        run.last_index = None if announced is None else announced - self._dummies - 1
        if 0 <= index < run.resumed_at:
            return []
        reason = None
        if -self._dummies <= index < 0:
            number = instance - run.first_instance + 1
            reason = f"dummy: {number} of {self._dummies} before the steady state"
        elif index < 0:
            reason = f"out of range: number {instance}, the series counts from {run.first_instance}"
        elif not self._plausible(run, index):
            reason = f"out of range: volume {index}, expected {run.queue.next_index} or soon after"
        elif index < run.queue.next_index:
            reason = f"late: volume {index} had come or been given up"
        elif not run.queue.takes(index):
            reason = f"duplicate: another file holds volume {index}"
        if reason is not None:
            return [_surplus(path, run.number, reason)]
        stored = self._timings[stored.identity.series_uid].checked(stored)
        item: Volume | Skipped
        if stored.affine is None:
            unplaced = "affine: the file does not tell; set affine in [scanner]"
            item = Skipped(run=run.number, volume=index, path=named(path.name), reason=unplaced)
        elif stored.data.shape != run.shape:
            wrong = f"wrong shape: expected {run.shape} as in the volumes before, got {stored.data.shape}"
            item = Skipped(run=run.number, volume=index, path=named(path.name), reason=wrong)
        else:
            item = self._volume(path, stored, stored.affine, run, index)
        run.queue.offer(index, Arrival(path=path, item=item), now_s)
        return []

    def _volume(self, path: Path, stored: StoredVolume, affine: NDArray[Any], run: Run, index: int) -> Volume:
        run.t_r_s = stored.t_r_s or 0.0
        stamp = Stamp(
            session=self._session,
            run=run.number,
            volume=index,
            acquired_s=stored.acquired_s,
            received_s=self._clock.wall(),
            received_mono_s=self._clock.monotonic(),
        )
        data, slope, intercept = stored.rescaled()
        return Volume(
            stamp=stamp,
            data=frozen(data),
            slope=slope,
            intercept=intercept,
            affine=frozen(affine),
            t_r_s=stored.t_r_s,
            t_r_measured=stored.t_r_measured,
            slice_times_s=None if stored.slice_times_s is None else frozen(stored.slice_times_s),
            series_uid=stored.identity.series_uid,
            instance=stored.identity.instance,
            path=named(path.name),
            problems=stored.problems,
        )

    def _release(self, now_s: float) -> Iterator[Arrival]:
        runs = sorted(self._runs.values(), key=lambda run: run.number)
        for run, later in zip_longest(runs, runs[1:]):
            for index, arrival in run.queue.release(now_s):
                yield arrival or _given_up(
                    run, index, f"did not come within {self._settings.gap_timeout_s:g} s of a later one"
                )
            if run.queue.held:
                return
            if run.last_index is None or run.queue.next_index > run.last_index:
                continue
            quiet_s = run.queue.quiet_s(now_s, run.opened_s)
            if later is not None and later.queue.next_index == 0 and quiet_s < self._settings.gap_timeout_s:
                return
            if run.queue.next_index == run.last_index and quiet_s >= self._settings.gap_timeout_s + run.t_r_s:
                run.queue.give_up()
                yield _given_up(run, run.last_index, "is the last one announced and did not come")


def _surplus(path: Path, run: int, reason: str) -> Arrival:
    """Report a file that takes no index away."""
    return Arrival(path=path, item=Skipped(run=run, volume=None, path=named(path.name), reason=reason))


def _given_up(run: Run, index: int, why: str) -> Arrival:
    return Arrival(
        path=None, item=Skipped(run=run.number, volume=index, path="", reason=f"missing: volume {index} {why}")
    )
