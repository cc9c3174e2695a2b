"""Calibration as a client of the stream: betas come in, a bundle goes out, the daemon is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from calibration.advice import Pace
from calibration.calibrator import Calibrator, write_bundle
from calibration.common_space import common_places
from calibration.nulls import FEWEST
from calibration.participant_fit import CalibrationFit
from rtdecode import derivatives
from rtdecode.client import Beta, Client, Message, RequestError, Run, Session
from rtdecode.errors import CalibrationError
from rtdecode.estimate.calibrated import MASK, MODEL, REFERENCE
from rtdecode.estimate.reestimate import open_betas
from rtdecode.packs import EnginePack
from rtdecode.packs.participant_bundle import CurvePoint
from rtdecode.settings import CalibrationSettings

_log = logging.getLogger(__name__)

TOPICS = ("session", "run", "beta")
ADVICE = {"go on": "more trials are worth their time", "enough": "enough", "no signal": "no signal"}
DEFAULT = CalibrationSettings()
ATTEMPTS = 6
STARTING = 30
"""How often the daemon is asked for what was published, two seconds each, while it starts or is started again."""
_FUNC = "sub-*/ses-*/func/"


class CalibrationRun:
    """Collects the betas of the calibration runs and writes the bundle when the last of these has ended.

    Parameters
    ----------
    client : Client
        Subscribed to `TOPICS`.
    calibrator : Calibrator
        Without trials.
    pack : EnginePack
        The session's pack.
    folder : Path
        Session folder of the settings; that of another session is beside it.
    settings : CalibrationSettings
    report : callable
        Is told in a line what goes on.

    Attributes
    ----------
    calibrator : Calibrator
        That of the present session.
    """

    def __init__(
        self,
        client: Client,
        calibrator: Calibrator,
        pack: EnginePack,
        folder: Path,
        settings: CalibrationSettings = DEFAULT,
        report: Callable[[str], object] = _log.info,
    ) -> None:
        self._client = client
        self.calibrator = calibrator
        self._pack = pack
        self._folder = folder
        self._settings = settings
        self._null_stimuli = frozenset(settings.null_stimuli)
        self._report = report
        self._from: tuple[float, ...] = ()  # what was published before that is of an earlier calibration
        self._until = 0
        self._begin(None)

    def _begin(self, session: Session | None) -> None:
        """Start with nothing: trials of two sessions are never mixed."""
        self.calibrator = self.calibrator.anew()
        self._session = session
        self._left_out: list[str] = []
        self._pace = Pace()
        self._measured = self._bundled = 0
        self._advice = ""
        self._placed = False
        self._bad: set[int] = set()
        self._heard: set[int] = set()

    def run(self) -> Path:
        """Work until the bundle is written and the daemon has it.

        Returns
        -------
        Path
            Folder of the bundle.

        Raises
        ------
        CalibrationError
            The session ended first, its trials cannot give a decoder, or the daemon does not answer or refuses.
        """
        try:
            return self._follow()
        except (TimeoutError, RequestError) as error:
            raise CalibrationError(f"calibration stopped: {error}") from error

    def _follow(self) -> Path:
        self._report("waiting for the session")
        self._ask(self._client.catch_up, attempts=STARTING)
        for told in self._client.snapshot():
            if isinstance(told, Session):
                self._from, self._until = told.calibration_from, told.calibration_runs
        for message in self._client.messages():
            match message:
                case Session():
                    self._meet(message)
                case Beta():
                    self._beta(message)
                case Run() if self._is_present(message):
                    self._told_run(message)
                    if message.state == "ended" and message.run is not None and self._is_last(message.run):
                        return self._finish(message.run)
            if self.calibrator.trials and not self._placed:
                self._place()
            if not self._client.pending() and self._measured_anew():
                self._bundle_if_due()
        raise CalibrationError("the stream ended")

    def _is_present(self, message: Message) -> bool:
        return self._session is not None and message.session == self._session.session

    def _meet(self, message: Session) -> None:
        if self._session is None or (message.session, message.folder) != (self._session.session, self._session.folder):
            if self._session is not None:
                self._report(
                    f"another session began: {message.session}, participant {message.participant}; the "
                    f"{self.calibrator.trials} trials of {self._session.session} are put aside, and calibration starts "
                    "over"
                )
                self._from = ()
            self._begin(message)
            self._from = max(message.calibration_from, self._from)
            if message.mode == "decode" and not self._from:
                raise CalibrationError(
                    f"session {message.session} decodes with a bundle from its start: nothing is calibrated in it; "
                    "ask for that first (recalibrate, or r on the page), or take decode.bundle out of the settings"
                )
            runs = self._until if message.calibration_from < self._from else message.calibration_runs
            which = f"runs {self._first_run} to {runs}" if self._from else f"{runs} calibration runs"
            self._report(
                f"session {message.session}, participant {message.participant}: waiting for the trials of {which}"
            )
        elif message.calibration_from > self._from:
            self._report(
                f"calibration begins again with run {message.calibration_from[0]:.0f}: the {self.calibrator.trials} "
                "trials so far are put aside"
            )
            self._begin(message)
            self._from = message.calibration_from
        self._session = message
        for run in set(message.bad_runs) - self._bad:
            self._bad.add(run)
            left = self.calibrator.leave_out_run(run)
            self._report(f"run {run} was marked as bad: {left} trials of it are left out")
        if message.state == "ended":
            raise CalibrationError(
                f"the session ended after {self.calibrator.trials} calibration trials, before its "
                f"calibration runs were complete"
            )

    def _told_run(self, message: Run) -> None:
        runs = self._runs()
        if runs is None or message.run is None or message.run > runs or message.run < self._first_run:
            return
        left = f", {len(self._left_out)} left out" if self._left_out else ""
        silent = message.state == "ended" and message.run not in self._heard
        doubt = "; no trial came in this run: does the experiment announce its trials to this session?"
        self._report(
            f"calibration run {message.run} of {runs} {message.state}: {self.calibrator.trials} trials so far"
            f"{left}{doubt if silent else ''}"
        )

    def _runs(self) -> int | None:
        if self._session is None:
            return None
        past = self._session.calibration_from < self._from  # a message of the session as it was then
        return self._until if past else self._session.calibration_runs

    @property
    def _first_run(self) -> int:
        return int(self._from[0]) if self._from else 1

    def _place(self) -> None:
        """Tell group prior and earlier visit which voxels these are."""
        self._placed = True
        earlier = self.calibrator.earlier
        if earlier is not None:
            earlier.check(_only(self._where, f"*_{derivatives.BRAIN_MASK}"))
            self._report(f"{len(earlier.trials.betas)} trials of session {earlier.session} are learned from again")
        if self.calibrator.wants_places:
            names = (derivatives.REFERENCE, derivatives.BRAIN_MASK)
            self.calibrator.lies_at(common_places(*(_only(self._where, f"*_{name}") for name in names)))

    def _measured_anew(self) -> bool:
        """Tell where the calibration stands, if trials have come since; return whether any have."""
        if self.calibrator.trials == self._measured:
            return False
        self._measured = self.calibrator.trials
        self._publish_status()
        return True

    def _is_last(self, run: int) -> bool:
        """Whether calibration is over with a run that has ended."""
        runs = self._runs()
        if runs is None or run > runs or run < self._first_run:
            return False
        if run == runs or self._settings.stop == "advice":
            self._measured_anew()
        return run == runs or (self._settings.stop == "advice" and self._advice == "enough")

    def _beta(self, message: Beta) -> None:
        runs = self._runs()
        if not self._is_present(message) or runs is None or message.run is None or message.run > runs:
            return
        self._heard.add(message.run)
        if not message.final or (self._from and (message.run, message.onset_s) < self._from):
            return
        names = (message.stimulus, message.condition)
        name = self.calibrator.known(names)
        is_null = not self._null_stimuli.isdisjoint(names)
        if message.run in self._bad:
            self._leave_out(message, "its run was marked as bad")
            return
        if message.invalid is not None or message.beta is None:
            self._leave_out(message, message.invalid or "no values")
            return
        if name is None and not is_null:
            self._leave_out(message, f"unknown stimulus {message.stimulus!r}, condition {message.condition!r}")
            return
        packed = message.beta
        beta = np.frombuffer(packed.data, packed.dtype).reshape(packed.shape)
        try:
            if is_null:
                self.calibrator.add_null(beta, trial=message.trial or "", run=message.run)
                return
            self.calibrator.add(beta, trial=message.trial or "", stimulus=str(name), run=message.run)
            self._pace.trial(message.run, message.onset_s)
        except CalibrationError as error:
            self._leave_out(message, str(error))

    def _leave_out(self, message: Beta, reason: str) -> None:
        _log.warning("trial %s left out of the calibration: %s", message.trial, reason)
        self._left_out.append(f"{message.trial}: {reason}")

    def _publish_status(self) -> None:
        status = self.calibrator.status(self._pace.plan(self._runs()))
        if status.advice != self._advice and status.advice:
            self._report(f"{ADVICE[status.advice]}: {status.why}")
        self._advice = status.advice
        self._report(f"{status.trials} trials: {_standing(status)}")
        self._tell(status)

    def _tell(self, status: CurvePoint, note: str = "") -> bool:
        """Publish where the calibration stands; return whether the session is still on."""
        told = msgspec.to_builtins(status)
        projected = told.pop("projected")
        told["ahead_min"] = [one["minutes"] for one in projected]
        told["ahead_trials"] = [one["trials"] for one in projected]
        told["projected"] = [one["percentile"] for one in projected]
        told["projected_low"], told["projected_high"] = ([one["interval"][end] for one in projected] for end in (0, 1))
        return self._ask_session(self._client.calibration, **told, note=note)

    def _bundle_if_due(self) -> None:
        """Hand an early decoder to the session, while calibration goes on."""
        every, trials = self._settings.bundle_every, self.calibrator.trials
        if not every or trials - self._bundled < every:
            return
        self._bundled = trials
        try:
            fit = self.calibrator.fit()
        except CalibrationError as error:
            self._report(f"no early decoder after {trials} trials: {error}")
            return
        target = self._write(fit, f"bundle-after-{trials:04d}-trials")
        if self._ask_session(self._client.mode, "decode", str(target)):
            self._report(f"a decoder of {trials} trials is with the daemon; calibration goes on")

    def _ask_session(self, request: Callable[..., object], *arguments: object, **fields: object) -> bool:
        """Make a request of this session alone; return False if the daemon is at another one by now."""
        assert self._session is not None
        try:
            self._ask(partial(request, *arguments, session=self._session.session, **fields))
        except RequestError as error:
            if error.code != "session":
                raise
            self._report(f"session {self._session.session} is over: {error}")
            return False
        return True

    def _ask(self, request: Callable[[], object], attempts: int = ATTEMPTS) -> None:
        """Make a request, again while the daemon is being restarted."""
        for attempt in range(attempts - 1):
            try:
                request()
            except TimeoutError:
                if attempt == 0:
                    _log.warning("the daemon does not answer; asking it again for a while")
            else:
                return
        request()

    def _finish(self, run: int) -> Path:
        assert self._session is not None
        if not self.calibrator.trials:
            left = f"{len(self._left_out)} were left out, first {self._left_out[0]}" if self._left_out else None
            raise CalibrationError(
                f"expected trials of known pictures in the calibration runs, got none: {left or 'none was announced'}"
            )
        if run != self._runs():
            self._report(f"calibration ends after run {run}, as more trials are not worth their time")
        earlier = self.calibrator.earlier
        beside = "" if earlier is None else f" beside {len(earlier.trials.betas)} of session {earlier.session}"
        self._report(f"the calibration runs are complete: fitting {self.calibrator.trials} trials{beside}")
        began_s = time.monotonic()
        self.calibrator.take_again(open_betas(_only(self._where, f"*_{derivatives.CALIBRATION_BETAS}")))
        fit = self.calibrator.fit()
        target = self._write(fit, f"bundle-from-run-{self._first_run:02d}" if self._from else "bundle")
        figures = fit.figures
        self._report(
            f"fitted in {time.monotonic() - began_s:.1f} s: {figures.voxels} voxels, category "
            f"{figures.category_accuracy:.0%} held out; handing the bundle to the daemon"
        )
        if not fit.can_support:
            self._report(
                f"no trial will be shown as supported: expected at least {FEWEST} responses without a picture to "
                f"compare with, got {figures.null_statistics}; show 40 to 60 content-free trials "
                "(calibration.null_stimuli), one after another"
            )
        status = self.calibrator.curve[-1] if self.calibrator.curve else CurvePoint(trials=self.calibrator.trials)
        note = f"fitted: {figures.voxels} voxels, category {figures.category_accuracy:.0%} held out"
        why = "the session is over"
        try:
            if self._tell(status, note) and self._ask_session(self._client.mode, "decode", str(target), last_run=run):
                return target
        except TimeoutError as error:
            why = str(error)
        raise CalibrationError(
            f"the daemon has not taken the decoder, {why}; it is in {target}: name that as decode.bundle in the "
            "settings of the next session"
        )

    @property
    def _where(self) -> Path:
        """Folder of the session."""
        assert self._session is not None
        return self._folder.parent / self._session.folder if self._session.folder else self._folder

    def _write(self, fit: CalibrationFit, name: str) -> Path:
        """Seal a bundle in the session folder; before the first run is over nothing was learned for later visits."""
        assert self._session is not None
        copies = {
            REFERENCE: _only(self._where, f"*_{derivatives.REFERENCE}"),
            MASK: _only(self._where, f"*_{derivatives.BRAIN_MASK}"),
        }
        if not name.startswith("bundle-after") or list(self._where.glob(_FUNC + f"*_{derivatives.MODEL}")):
            copies[MODEL] = _only(self._where, f"*_{derivatives.MODEL}")
        target = self._where / name
        identity = write_bundle(
            target,
            fit,
            pack=self._pack,
            participant=self._session.participant,
            session=self._session.session,
            curve=self.calibrator.curve,
            left_out=self._left_out,
            copies=copies,
        )
        _log.info("bundle %s written to %s", identity, target)
        return target


def _standing(status: CurvePoint) -> str:
    if status.percentile is None or status.p_value is None:
        return "too few yet to tell them apart"
    low, high = status.interval
    rank = f"held-out percentile rank {status.percentile:.0%} [{low:.0%}, {high:.0%}]"
    return f"{rank}, chance 50 %, p = {status.p_value:.3f}"


def _only(session: Path, pattern: str) -> Path:
    found = sorted(session.glob(_FUNC + pattern))
    if len(found) != 1:
        raise CalibrationError(f"{session}: expected one {pattern}, found {len(found)}")
    return found[0]
