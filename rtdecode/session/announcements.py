"""What the experiment announces, judged before it is taken: an answer that says yes is a promise of a result."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from rtdecode.errors import ProtocolError
from rtdecode.publish.requests import Event
from rtdecode.records import FilmStart, RunEnd, RunStart, TrialAmended, TrialCancelled, TrialEvent
from rtdecode.session.run_state import Progress

Announced = TrialEvent | RunStart | RunEnd | FilmStart
Change = TrialAmended | TrialCancelled
SAME_MOMENT_S = 0.001
LATE_START_S = 15.0
"""So long after the first volume the start of a run may be announced: dummies, and a script that is slow to start."""


class Announcements:
    """What was announced so far; used from one thread at a time.

    Parameters
    ----------
    stimuli : collection of str
        Names that the decoder knows.
    final_at_s : float
        When the beta of a trial is final, seconds after its onset.
    films : collection of str
        Names of films that there are predictions of.
    """

    def __init__(self, stimuli: Collection[str], final_at_s: float, films: Collection[str] = ()) -> None:
        self._films = tuple(films)
        self._stimuli = frozenset(stimuli)
        self._final_at_s = final_at_s
        self._trials: dict[str, Mapping[str, Any]] = {}
        self._onsets: dict[int, dict[float, str]] = {}
        self._runs: dict[tuple[type, int], RunStart | RunEnd | FilmStart] = {}

    def take(self, item: Announced | Change) -> None:
        """Remember an announcement, or a change of one, that is journalled."""
        if not isinstance(item, TrialEvent | TrialAmended | TrialCancelled):
            self._runs[type(item), item.run] = item
            return
        onsets = self._onsets.setdefault(item.run, {})
        for onset_s in [onset_s for onset_s, trial in onsets.items() if trial == item.trial]:
            del onsets[onset_s]
        if isinstance(item, TrialCancelled):
            self._trials[item.trial] = {}  # its name stays taken
            return
        self._trials[item.trial] = asdict(item)
        onsets[item.onset_s] = item.trial

    def repeated(self, item: Announced | Change) -> bool:
        """Whether just this was announced before: the answer was lost on its way."""
        if isinstance(item, TrialEvent | TrialAmended):
            return self._trials.get(item.trial) == asdict(item)
        if isinstance(item, TrialCancelled):
            return self._trials.get(item.trial) == {}
        return self._runs.get((type(item), item.run)) == item

    def change(self, event: Event) -> Change:
        """Turn a request to amend or cancel a trial into what it changes.

        Raises
        ------
        ProtocolError
            No such trial was announced in that run, or it was withdrawn.
        """
        assert event.trial is not None
        known = self._trials.get(event.trial)
        if event.kind == "cancel" and known == {}:
            return TrialCancelled(run=event.run, trial=event.trial)
        if not known or known["run"] != event.run:
            what = "it was withdrawn" if known == {} else "none of that name was"
            raise ProtocolError(f"trial {event.trial!r}: expected one announced in run {event.run}, but {what}")
        if event.kind == "cancel":
            return TrialCancelled(run=event.run, trial=event.trial)
        told = {name: getattr(event, name) for name in ("onset_s", "duration_s", "stimulus", "condition")}
        told["candidates"] = None if event.candidates is None else tuple(event.candidates)
        return TrialAmended(**{**known, **{name: value for name, value in told.items() if value is not None}})

    def judge_change(self, item: Change, *progress: Progress) -> list[str]:
        """Say what is doubtful about a change.

        Parameters
        ----------
        item : TrialAmended or TrialCancelled
        *progress : Progress
            How far the scan has come, by all who know.

        Raises
        ------
        ProtocolError
            The trial's beta is final, or what it is to become cannot be told from another.
        """
        onset_s = float(self._trials[item.trial]["onset_s"])
        end = self._runs.get((RunEnd, item.run))
        last = end.volumes if isinstance(end, RunEnd) else None
        for far in progress:
            over = item.run <= far.closed or (far.run == item.run and last is not None and far.volumes >= last)
            reached_s = far.scanned_s - onset_s
            if over or (far.run == item.run and reached_s >= self._final_at_s - SAME_MOMENT_S):
                why = f"run {item.run} is over" if over else f"{reached_s:.1f} s after its onset"
                raise ProtocolError(f"trial {item.trial!r}: its beta is final, {why}: nothing of it can be changed")
        if isinstance(item, TrialCancelled):
            return []
        self._check_moment(item)
        return self._doubts_of_stimulus(item)

    def judge(self, item: Announced, progress: Progress) -> list[str]:
        """Say what is doubtful about an announcement that is new.

        Parameters
        ----------
        item : TrialEvent, RunStart, RunEnd or FilmStart
        progress : Progress
            How far the scan has come.

        Raises
        ------
        ProtocolError
            It cannot have a result.
        """
        if item.run <= progress.closed:
            raise ProtocolError(f"run {item.run} is over: expected a run that is open or to come")
        if isinstance(item, TrialEvent):
            return self._judge_trial(item, progress)
        if isinstance(item, FilmStart) and item.film not in self._films:
            known = ", ".join(self._films) or "none"
            raise ProtocolError(f"film {item.film!r}: expected one of film.predictions in the settings: {known}")
        if isinstance(item, RunStart):
            under_way = progress.run == item.run and progress.volumes > 0
            if under_way and (RunStart, item.run) in self._runs:
                raise ProtocolError(f"run {item.run} was announced otherwise before, and is under way")
            to_come = (progress.run or progress.closed) + 1
            if item.run > to_come:
                return [f"run {item.run} was announced, but the next that the scanner begins is run {to_come}"]
            if under_way and progress.scanned_s > LATE_START_S:
                return [
                    f"run {item.run} was announced {progress.scanned_s:.0f} s after the scanner began it; if a run to "
                    f"come is meant, it is run {to_come}: a scan that was started again counts as a run of its own"
                ]
        return []

    def _judge_trial(self, event: TrialEvent, progress: Progress) -> list[str]:
        if event.trial in self._trials:
            raise ProtocolError(f"trial {event.trial!r} was announced before; trial names are unique")
        self._check_moment(event)
        doubts = self._doubts_of_stimulus(event)
        late_s = progress.scanned_s - event.onset_s
        if event.run == progress.run and late_s > self._final_at_s:
            doubts.append(
                f"trial {event.trial!r} was announced {late_s:.0f} s after its onset: it has one beta only, later than "
                f"those of other trials ({self._final_at_s:g} s)"
            )
        return doubts

    def _check_moment(self, event: TrialEvent | TrialAmended) -> None:
        for onset_s, other in self._onsets.get(event.run, {}).items():
            if other != event.trial and abs(onset_s - event.onset_s) < SAME_MOMENT_S:
                raise ProtocolError(
                    f"trial {event.trial!r} begins when trial {other!r} does, {onset_s:g} s: their responses cannot be "
                    "told apart; announce them as one trial"
                )

    def _doubts_of_stimulus(self, event: TrialEvent | TrialAmended) -> list[str]:
        named = [name for name in (event.stimulus, event.condition) if name is not None]
        if any(name in self._stimuli for name in named):
            return []
        what = " and ".join(repr(name) for name in named) or "no stimulus"
        return [
            f"trial {event.trial!r} shows {what}, which is none of decode.stimuli: it cannot teach the "
            "decoder, nor be ranked"
        ]


def announced(event: Event) -> Announced:
    """Turn a request into what it announces."""
    if event.kind == "run_start":
        return RunStart(run=event.run, expected=event.expected_volumes, t_r_s=event.t_r_s)
    if event.kind == "run_end":
        return RunEnd(run=event.run, volumes=event.volumes)
    if event.kind == "film":
        assert event.stimulus is not None
        assert event.onset_s is not None
        return FilmStart(run=event.run, film=event.stimulus, onset_s=event.onset_s)
    assert event.trial is not None
    assert event.onset_s is not None
    assert event.duration_s is not None
    return TrialEvent(
        run=event.run,
        trial=event.trial,
        onset_s=event.onset_s,
        duration_s=event.duration_s,
        stimulus=event.stimulus,
        condition=event.condition,
        candidates=tuple(event.candidates or ()),
    )
