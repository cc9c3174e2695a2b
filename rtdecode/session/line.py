"""The straight line from inputs to messages: a fold over its inputs, without threads or waiting.

Everything that arrives (volumes, skipped files, events, control) is one call of `Line.handle`, in the order of the
volume lane. What leaves are messages, records in the session folder, and betas in the picture lane.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

from rtdecode import client as wire
from rtdecode.clock import Clock
from rtdecode.errors import VolumeError
from rtdecode.estimate.estimator import Estimator
from rtdecode.memory import give_back_memory
from rtdecode.publish import messages
from rtdecode.publish.publisher import Publisher
from rtdecode.records import (
    BetaUpdate,
    BundleRequest,
    Command,
    FilmStart,
    RegisteredVolume,
    RunEnd,
    RunStart,
    Skipped,
    Stamp,
    TrialAmended,
    TrialCancelled,
    TrialEvent,
    TrialOverdue,
    Volume,
)
from rtdecode.session import doubts
from rtdecode.session.blind import Blind, withheld
from rtdecode.session.feedback import follow_feedback, no_trial
from rtdecode.session.films import Films
from rtdecode.session.lanes import DecodeLanes
from rtdecode.session.outcomes import Outcomes
from rtdecode.session.past import Input
from rtdecode.session.recording import Recording
from rtdecode.session.repeats import Repeats
from rtdecode.session.run_state import Progress, RunState, last_word
from rtdecode.session.steering import Steering
from rtdecode.settings import Settings

_log = logging.getLogger(__name__)


class Line:
    """Owner of the run state; called from one thread.

    Parameters
    ----------
    settings : Settings
    estimator : Estimator
    recording : Recording
    publisher : Publisher
    waiting : DecodeLanes
        Gets the betas of the trials that are to be decoded: those that come after a bundle was asked for, and those of
        runs after the calibration runs, which wait for one. By the same rule it gets volumes.
    clock : Clock
    predicts : bool
        Whether volumes are to be predicted of.
    films : Films or None
        Follows the films that are shown.
    blind : Blind or None
        Decides what is shown for feedback.
    decide : callable
        Told what a rule of the protocol has decided; it comes back as an input.

    Attributes
    ----------
    progress : Progress
        May be read from any thread.
    """

    def __init__(
        self,
        settings: Settings,
        estimator: Estimator,
        recording: Recording,
        publisher: Publisher,
        waiting: DecodeLanes,
        clock: Clock,
        *,
        predicts: bool = False,
        films: Films | None = None,
        blind: Blind | None = None,
        decide: Callable[[Command], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._estimator = estimator
        self._recording = recording
        self._publisher = publisher
        self._waiting = waiting
        self._predicts = predicts
        self._films = films
        self._steering = Steering(settings)
        self._repeats = Repeats(settings.decode.average_repeats)
        self._feedback = follow_feedback(settings.feedback, blind, settings.calibration.runs)
        self._blind = blind
        self._decide = decide
        self._clock = clock
        self._run: RunState | None = None
        self._announced: dict[int, RunStart] = {}
        self._ended: dict[int, RunEnd] = {}
        self._last_input_mono_s = clock.monotonic()
        self._last_volume_mono_s: float | None = None
        self._pending: dict[str, TrialEvent] = {}
        self._referenced = False
        self._done = 0
        self.progress = Progress()
        self._outcomes = Outcomes(settings, estimator, recording)

    def handle(self, item: Input, lag: int) -> None:
        """Take one input.

        Parameters
        ----------
        item : Input
        lag : int
            Items still waiting behind it.
        """
        match item:
            case Volume():
                self._volume(item, lag)
            case Skipped():
                self._skipped(item)
            case BundleRequest():
                self._steering.take(item)
                if item.last_run is not None:
                    self._estimator.end_calibration(item.last_run)
            case Command():
                self._steer(item)
            case TrialEvent():
                self._recording.event(item)
                if self._is_closed(item.run):
                    self._no_result(item, "its run was over when it was announced")
                else:
                    self._estimator.add_event(item)
                    self._pending[item.trial] = item
            case TrialAmended() | TrialCancelled():
                self._change(item)
            case TrialOverdue():
                self._overdue(item)
            case FilmStart():
                if self._films is not None:
                    self._films.begin(item)
            case RunStart():
                self._announced[item.run] = item
            case RunEnd():
                self._ended[item.run] = item
                self._close_if_complete()
        self._last_input_mono_s = self._clock.monotonic()
        self._note_progress()

    def overdue_s(self) -> float | None:
        """Seconds since the last volume, if one should have come since; from any thread."""
        run, last, t_r_s = self._run, self._last_volume_mono_s, self._estimator.t_r_s
        if run is None or last is None or t_r_s is None or run.run in self._ended:
            return None
        expected = self._expected(run)
        if expected is not None and run.accounted >= expected:
            return None
        since_s = self._clock.monotonic() - last
        return since_s if since_s > 2 * t_r_s + 1 else None

    def _expected(self, run: RunState) -> int | None:
        """Return how many volumes a run has in all, as far as anybody has said; the experiment's last word counts."""
        ended = self._ended.get(run.run)
        return run.expected or self._settings.scanner.n_volumes if ended is None else ended.volumes

    def _note_progress(self) -> None:
        run = self._run
        if run is None:
            self.progress = Progress(closed=self._done)
        else:
            scanned_s = run.accounted * (self._estimator.t_r_s or 0.0)
            self.progress = Progress(closed=run.run - 1, run=run.run, volumes=run.accounted, scanned_s=scanned_s)

    def tick(self) -> None:
        """Let time pass: a run that was ended but lacks volumes is closed after the gap time-out.

        In one that has stopped, trials that are due have their last word. What depends on time is journalled.
        """
        run = self._run
        if run is not None and run.run not in self._ended:
            self._give_up(run)
        if run is None or run.run not in self._ended:
            return
        if self._clock.monotonic() - self._last_input_mono_s < self._settings.scanner.gap_timeout_s:
            return
        told = self._ended[run.run].volumes or run.accounted
        for index in range(run.accounted, told):
            missing = Skipped(run=run.run, volume=index, path="", reason="missing at the end of the run")
            self._recording.decision("missing", **asdict(missing))
            self._skipped(missing)
        self._finish_run()
        self._note_progress()

    def finish(self) -> None:
        """Close the run that is still open; write the tSNR maps and plots of all, for which there is time now."""
        self._finish_run()
        for event in list(self._pending.values()):
            self._no_result(event, f"the session ended before run {event.run} was scanned")
        self._outcomes.draw()

    # volumes --------------------------------------------------------------------------------------------

    def _volume(self, volume: Volume, lag: int) -> None:
        began = self._clock.monotonic()
        stamp = volume.stamp
        run = self._enter(stamp.run, volume.t_r_s)
        if run is None:
            self._skipped(
                Skipped(run=stamp.run, volume=None, path=volume.path, reason=f"run {stamp.run} is already closed")
            )
            return
        self._tell(doubts.timing_faults(volume, run.doubted))
        try:
            registered, betas = self._estimator.step(volume)
        except VolumeError as error:
            self._skipped(Skipped(run=stamp.run, volume=stamp.volume, path=volume.path, reason=str(error)))
            return
        run.received += 1
        if run.received == 1:
            announced = self._announced.get(run.run)
            self._tell(doubts.repetition_time_faults(run.run, announced.t_r_s if announced else None, volume.t_r_s))
        run.accounted = max(run.accounted, stamp.volume + 1)
        if not self._referenced:
            self._first_volume(volume, registered)
        self._last_volume_mono_s = done = self._clock.monotonic()
        stages = {"wait": 1e3 * (began - stamp.received_mono_s), "estimate": 1e3 * (done - began)}
        told = withheld(registered, self._blind)
        self._recording.run(run.run).volume(told, problems=volume.problems)
        self._publish(stamp, stages, messages.volume(told, lag))
        run.report.add(registered)
        if self._films is not None:
            match = self._films.match(registered)
            self._tell(self._films.faults())
            if match is not None:
                self._publish(stamp, stages, match)
            for command in self._films.decisions():
                self._decide(command)
        if self._feedback is not None:
            took_s = self._clock.monotonic() - stamp.received_mono_s
            self._publish(stamp, stages, self._feedback.add(registered, took_s=took_s))
        for beta in betas:
            self._beta(beta, stages)
        if self._predicts and self._steering.decodes(stamp.run):
            self._waiting.volumes.put(registered)
        self._close_if_complete()

    def _tell(self, faults: Iterable[wire.Fault]) -> None:
        for fault in faults:
            self._publisher.publish(fault)

    def _first_volume(self, volume: Volume, registered: RegisteredVolume) -> None:
        """Write the space of the session; in that of an earlier visit, draw where the head lies today."""
        space = self._estimator.space
        self._recording.reference(space.voxels)
        self._referenced = True
        self._tell(doubts.parcel_faults(space.parcels))
        if self._estimator.calibrated is not None:
            self._tell(doubts.mask_faults(space.mask, self._outcomes.head(volume, registered)))
            self._tell(doubts.head_faults(registered.fit))
        elif space.mask is not space.brain:
            self._tell(doubts.mask_faults(space.mask, space.data))

    def _skipped(self, item: Skipped) -> None:
        if self._is_closed(item.run) and item.volume is not None and not item.path:
            return  # the end of the run has said so
        self._publisher.publish(messages.skipped(item))
        _log.warning("run %d volume %s skipped: %s", item.run, item.volume, item.reason)
        if item.volume is None:
            return
        run = self._enter(item.run, None)
        if run is not None and item.volume >= run.accounted:
            run.skipped += 1
            run.accounted = item.volume + 1
            self._estimator.skip(item.run, item.volume)
            self._recording.run(item.run).skipped(item.volume, item.reason)
            if self._feedback is not None:
                told = self._feedback.skipped(item.run, item.reason)
                self._publisher.publish(replace(told, run=item.run, volume=item.volume))
            self._close_if_complete()

    def _beta(self, beta: BetaUpdate, stages: dict[str, float], *, counts: bool = True) -> None:
        """Publish a beta and hand it on to be decoded; one that does not count is none of the run's."""
        event = beta.event
        self._publish(beta.stamp, stages, messages.beta(beta))
        if beta.final:
            self._pending.pop(event.trial, None)
            if counts and self._run is not None and self._run.run == event.run:
                self._run.finals.append(beta)
        if not self._steering.decodes(event.run) or event.condition in self._settings.decode.undecoded_conditions:
            return
        why = self._steering.withheld(event.run)
        if why is not None:
            self._waiting.pictures.withdraw(event.trial)
            if not beta.final:
                return
            beta = replace(beta, invalid=beta.invalid or why)
        if beta.invalid is not None:
            shown = no_trial(self._steering.feedback, beta.invalid)
            if shown is not None:
                self._publish(beta.stamp, stages, replace(shown, trial=event.trial, revision=beta.revision))
            self._publish(beta.stamp, stages, messages.no_score(beta))
        else:
            followed = beta if self._steering.calibrates(event.run) else self._repeats.follow(beta)
            replaced = self._waiting.pictures.put(followed)
            if replaced is not None:
                self._recording.decision("superseded", trial=event.trial, revision=replaced.revision)

    def _steer(self, command: Command) -> None:
        """Carry out a command; those that the fold has nothing to do with are carried out elsewhere."""
        self._steering.take(command)
        match command.command:
            case "feedback" if self._feedback is not None:
                self._feedback.change(self._steering.feedback)
            case "bad_run":
                assert command.run is not None
                self._estimator.leave_out(command.run)
                self._repeats.leave_out(command.run)
                self._recording.run(command.run).mark_bad(self._steering.bad_runs[command.run])
            case "recalibrate":
                self._estimator.end_calibration(self._steering.calibration_runs, anew=True)

    def _change(self, item: TrialAmended | TrialCancelled) -> None:
        """Correct or withdraw a trial; a run that time has closed meanwhile is told of, as the answer promised more."""
        trials, derivatives = self._estimator.trials, self._recording.run(item.run)
        revision = trials.cancel(item.run, item.trial) if isinstance(item, TrialCancelled) else None
        if isinstance(item, TrialAmended) and trials.amend(item.event):
            self._pending[item.trial] = item.event
            derivatives.changed(item.trial, item.event)
        elif revision is not None:
            derivatives.changed(item.trial, None)
            self._waiting.pictures.withdraw(item.trial)
            withdrawn = self._pending.pop(item.trial)
            self._beta(self._last_word(withdrawn, "the experiment has withdrawn it", revision), {}, counts=False)
        else:
            self._publisher.publish(doubts.late_change(item.run, item.trial))

    def _give_up(self, run: RunState) -> None:
        """Let trials have their last word that are due in a run that has stopped."""
        since_s = self.overdue_s() or 0.0
        if since_s < self._settings.scanner.stopped_after_s:
            return
        reached_s = run.accounted * (self._estimator.t_r_s or 0.0) + since_s - self._settings.estimate.final_at_s
        for event in [one for one in self._pending.values() if one.run == run.run and one.onset_s <= reached_s]:
            overdue = TrialOverdue(run=event.run, trial=event.trial)
            self._recording.decision("overdue", **asdict(overdue))
            self._overdue(overdue)

    def _overdue(self, item: TrialOverdue) -> None:
        for beta in self._estimator.give_up(item.run, item.trial):
            self._beta(beta, {})

    def _no_result(self, event: TrialEvent, reason: str) -> None:
        """Give a trial that no volume will tell of its last word."""
        self._recording.run(event.run).no_result(event, reason)
        self._beta(self._last_word(event, reason), {})

    def _last_word(self, event: TrialEvent, reason: str, revision: int = 0) -> BetaUpdate:
        return last_word(event, reason, revision, self._recording.session, self._clock)

    def _publish(self, stamp: Stamp, stages: dict[str, float], message: wire.Message) -> None:
        total = 1e3 * (self._clock.monotonic() - stamp.received_mono_s)
        self._publisher.publish(messages.headed(message, stamp, {**stages, "total": total}))

    # runs -----------------------------------------------------------------------------------------------

    def _is_closed(self, number: int) -> bool:
        return number <= self._done or (self._run is not None and number < self._run.run)

    def _enter(self, number: int, t_r_s: float | None) -> RunState | None:
        run = self._run
        if run is not None and run.run == number:
            return run
        if self._is_closed(number):
            return None
        if run is not None:
            self._tell(doubts.short_run_faults(run.run, run.accounted, self._expected(run), number))
        self._finish_run()
        run = self._run = RunState(run=number)
        self._estimator.start_run(number, t_r_s)
        announced = self._announced.get(number)
        run.expected = announced.expected if announced else None
        self._publisher.publish(wire.Run(run=number, state="started", expected=run.expected))
        _log.info("run %d started", number)
        return run

    def _close_if_complete(self) -> None:
        run = self._run
        if run is not None and run.run in self._ended:
            told = self._ended[run.run].volumes
            if told is not None and run.accounted >= told:
                self._finish_run()

    def _finish_run(self) -> None:
        run = self._run
        if run is None:
            return
        for beta in self._estimator.finish_run():
            self._beta(beta, {})
        if self._films is not None:
            self._films.end(run.run)
        self._run = None
        self._done = run.run
        self._last_volume_mono_s = None
        self._recording.run(run.run).finish(
            run.finals,
            t_r_s=self._estimator.t_r_s,
            settings=self._settings.estimate,
            space=self._estimator.space.voxels if self._referenced else None,
            figures=run.report.summary() if run.received else None,
        )
        for event in [event for event in self._pending.values() if event.run <= run.run]:
            self._no_result(event, f"run {event.run} was not scanned")
        if run.received:
            self._outcomes.keep(run.run, run.report)
        self._outcomes.learn(run.run, self._steering.planned_runs)
        give_back_memory()
        self._publisher.publish(
            wire.Run(run=run.run, state="ended", expected=run.expected, received=run.received, skipped=run.skipped)
        )
        _log.info("run %d ended: %d volumes, %d skipped", run.run, run.received, run.skipped)
