"""The straight line from inputs to messages: a fold over its inputs, without threads or waiting.

Everything that arrives (volumes, skipped files, events, control) is one call of `Line.handle`, in the order of the
volume lane. What leaves are messages, records in the session folder, and betas in the picture lane.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from rtdecode import client as wire
from rtdecode.clock import Clock
from rtdecode.errors import VolumeError
from rtdecode.estimate.estimator import Estimator
from rtdecode.estimate.inputs import scaled
from rtdecode.estimate.reestimate import save_betas
from rtdecode.estimate.report import RunReport, overlay, place_of_head
from rtdecode.publish import messages
from rtdecode.publish.publisher import Publisher
from rtdecode.records import (
    BetaUpdate,
    BundleRequest,
    FilmStart,
    RegisteredVolume,
    RunEnd,
    RunStart,
    Skipped,
    Stamp,
    TrialEvent,
    Volume,
)
from rtdecode.session.doubts import head_faults, mask_faults, parcel_faults, repetition_time_faults, timing_faults
from rtdecode.session.feedback import follow_feedback, no_trial
from rtdecode.session.films import Films
from rtdecode.session.lanes import DecodeLanes
from rtdecode.session.memory import give_back_memory
from rtdecode.session.past import Input
from rtdecode.session.recording import Recording
from rtdecode.session.run_state import Progress, RunState
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
    ) -> None:
        self._settings = settings
        self._estimator = estimator
        self._recording = recording
        self._publisher = publisher
        self._waiting = waiting
        self._predicts = predicts
        self._films = films
        self._feedback = follow_feedback(settings.feedback)
        self._clock = clock
        self._run: RunState | None = None
        self._announced: dict[int, RunStart] = {}
        self._ended: dict[int, RunEnd] = {}
        self._last_input_mono_s = clock.monotonic()
        self._last_volume_mono_s: float | None = None
        self._pending: dict[str, TrialEvent] = {}
        self._bundle_asked = False
        self._referenced = False
        self._done = 0
        self.progress = Progress()
        self._finished: list[int] = []

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
                self._bundle_asked = True
                if item.last_run is not None:
                    self._estimator.end_calibration(item.last_run)
            case TrialEvent():
                self._recording.event(item)
                if self._is_closed(item.run):
                    self._no_result(item, "its run was over when it was announced")
                else:
                    self._estimator.add_event(item)
                    self._pending[item.trial] = item
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
        expected = run.expected or self._settings.scanner.n_volumes
        if expected is not None and run.accounted >= expected:
            return None
        since_s = self._clock.monotonic() - last
        return since_s if since_s > 2 * t_r_s + 1 else None

    def _note_progress(self) -> None:
        run = self._run
        if run is None:
            self.progress = Progress(closed=self._done)
        else:
            scanned_s = run.accounted * (self._estimator.t_r_s or 0.0)
            self.progress = Progress(closed=run.run - 1, run=run.run, volumes=run.accounted, scanned_s=scanned_s)

    def tick(self) -> None:
        """Let time pass: a run that was ended but lacks volumes is closed after the gap time-out.

        The decision is journalled, since it depends on time.
        """
        run = self._run
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
        for place, number in enumerate(self._finished):
            _log.info("writing the plots of run %d (%d of %d)", number, place + 1, len(self._finished))
            try:
                self._draw(number)
            except Exception:  # plots can be drawn again; what ends a session goes on
                _log.exception("the plots of run %d are left out", number)
        self._finished.clear()

    def _draw(self, run: int) -> None:
        kept = self._kept_report(run)
        report, design = RunReport.stored(kept)
        space, stem = self._estimator.space, self._recording.stem(run)
        with self._recording.leaving_out(stem):
            report.write(stem, space.mask, space.affine, self._settings.estimate.censor_fd_mm, design)
        kept.unlink()

    def _kept_report(self, run: int) -> Path:
        return self._recording.scratch / f"report-run-{run:02d}.npz"

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
        self._tell(timing_faults(volume, run.doubted))
        try:
            registered, betas = self._estimator.step(volume)
        except VolumeError as error:
            self._skipped(Skipped(run=stamp.run, volume=stamp.volume, path=volume.path, reason=str(error)))
            return
        run.received += 1
        if run.received == 1:
            announced = self._announced.get(run.run)
            self._tell(repetition_time_faults(run.run, announced.t_r_s if announced else None, volume.t_r_s))
        run.accounted = max(run.accounted, stamp.volume + 1)
        if not self._referenced:
            self._first_volume(volume, registered)
        stages = {
            "wait": 1e3 * (began - stamp.received_mono_s),
            "estimate": 1e3 * (self._clock.monotonic() - began),
        }
        self._last_volume_mono_s = self._clock.monotonic()
        self._recording.run(run.run).volume(registered, problems=volume.problems)
        self._publish(stamp, stages, messages.volume(registered, lag))
        run.report.add(registered)
        if self._films is not None:
            match = self._films.match(registered)
            self._tell(self._films.faults())
            if match is not None:
                self._publish(stamp, stages, match)
        if self._feedback is not None:
            took_s = self._clock.monotonic() - stamp.received_mono_s
            self._publish(stamp, stages, self._feedback.add(registered, took_s=took_s))
        for beta in betas:
            self._beta(beta, stages)
        if self._predicts and self._decodes(stamp.run):
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
        self._tell(parcel_faults(space.parcels))
        if self._estimator.calibrated is None:
            self._tell(mask_faults(space.mask, space.data) if space.mask is not space.brain else ())
            return
        moved = space.aligned(scaled(volume, space.data.shape), volume.affine, registered.matrix)
        with self._recording.leaving_out(self._recording.alignment_path()) as path:
            overlay(space.data, moved, path, place_of_head(registered))
        self._tell(mask_faults(space.mask, moved))
        self._tell(head_faults(registered.fit))
        _log.info("%s; look at %s", place_of_head(registered), path)

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

    def _beta(self, beta: BetaUpdate, stages: dict[str, float]) -> None:
        event = beta.event
        self._publish(beta.stamp, stages, messages.beta(beta))
        if beta.final:
            self._pending.pop(event.trial, None)
            if self._run is not None and self._run.run == event.run:
                self._run.finals.append(beta)
        if not self._decodes(event.run) or event.condition in self._settings.decode.undecoded_conditions:
            return
        if beta.invalid is not None:
            shown = no_trial(self._settings.feedback, beta.invalid)
            if shown is not None:
                self._publish(beta.stamp, stages, replace(shown, trial=beta.event.trial, revision=beta.revision))
            self._publish(beta.stamp, stages, messages.no_score(beta))
        else:
            replaced = self._waiting.pictures.put(beta)
            if replaced is not None:
                self._recording.decision("superseded", trial=event.trial, revision=replaced.revision)

    def _decodes(self, run: int) -> bool:
        return self._bundle_asked or run > self._settings.calibration.runs

    def _no_result(self, event: TrialEvent, reason: str) -> None:
        """Give a trial that no volume will tell of its last word."""
        self._pending.pop(event.trial, None)
        self._recording.run(event.run).no_result(event, reason)
        stamp = Stamp(
            session=self._recording.session,
            run=event.run,
            volume=-1,
            trial=event.trial,
            received_s=self._clock.wall(),
            received_mono_s=self._clock.monotonic(),
        )
        nothing = np.zeros(0, np.float32)
        last = BetaUpdate(stamp=stamp, event=event, revision=0, final=True, delay_s=0.0, beta=nothing, invalid=reason)
        self._beta(last, {})

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
            with self._recording.leaving_out(self._kept_report(run.run)) as path:
                run.report.store(path, self._estimator.last_design)
                self._finished.append(run.run)
        self._keep_what_was_learned(run.run)
        give_back_memory()
        self._publisher.publish(
            wire.Run(run=run.run, state="ended", expected=run.expected, received=run.received, skipped=run.skipped)
        )
        _log.info("run %d ended: %d volumes, %d skipped", run.run, run.received, run.skipped)

    def _keep_what_was_learned(self, run: int) -> None:
        """Write what a calibration run taught; its betas anew, if calibration may be over with it."""
        learned, settings = self._estimator.learned, self._settings.calibration
        if learned is None or self._estimator.calibrated is not None or run > self._estimator.calibration_runs:
            return
        with self._recording.leaving_out(self._recording.model_path()) as path:
            learned.save(path, self._settings.estimate)
        may_end = run == settings.runs or settings.stop == "advice"
        betas = self._estimator.reestimated() if may_end else None
        if betas is not None:
            with self._recording.leaving_out(self._recording.calibration_betas_path()) as path:
                save_betas(path, betas)
