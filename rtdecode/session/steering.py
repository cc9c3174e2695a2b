"""What commands have made of a session: a fold over them, and the judge of the next one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from rtdecode.errors import ProtocolError
from rtdecode.publish.requests import Control, Mode
from rtdecode.records import BundleRequest, Command
from rtdecode.score_settings import FeedbackSettings, feedback_problems
from rtdecode.session.run_state import Progress
from rtdecode.settings import Settings


class Steering:
    """The state that commands leave. Two threads hold one each: who answers, and who carries out.

    Parameters
    ----------
    settings : Settings
        What holds before the first command.

    Attributes
    ----------
    paused : bool
        Trials are not decoded.
    bad_runs : dict of int to str
        Runs that were marked as bad, and why.
    bundle : BundleRequest or None
        The bundle that was asked for last.
    calibration_from : tuple of float
        Run, and onset in it in seconds, from which trials calibrate again; empty while it is from the first run on.
    calibration_runs : int
        Runs up to this one calibrate.
    planned_runs : int
        The same, if calibration is not ended before.
    feedback : FeedbackSettings
        What is shown from now on.
    stopped : bool
        The session was told to end.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._answers: dict[str, tuple[str, dict[str, Any]]] = {}
        self.paused = False
        self.bad_runs: dict[int, str] = {}
        self.bundle: BundleRequest | None = None
        self.calibration_from: tuple[float, ...] = ()
        self.calibration_runs = self.planned_runs = settings.calibration.runs
        self.feedback = settings.feedback
        self.stopped = False

    def take(self, item: Command | BundleRequest) -> dict[str, Any]:
        """Take a command that is journalled; return its answer."""
        answer: dict[str, Any] = {}
        if isinstance(item, BundleRequest):
            kind, answer = "decode", {"bundle": item.identity}
            self.bundle = item
            if item.last_run is not None:
                self.calibration_runs = min(item.last_run, self.calibration_runs)
        else:
            kind = item.command
            answer = self._command(item)
        if item.token is not None:
            self._answers[item.token] = kind, answer
        return answer

    def _command(self, item: Command) -> dict[str, Any]:
        match item.command:
            case "pause" | "resume":
                self.paused = item.command == "pause"
            case "feedback":
                self.feedback = changed(self.feedback, item)
            case "bad_run":
                assert item.run is not None
                self.bad_runs[item.run] = f"run {item.run} was marked as bad" + (f": {item.reason}" * bool(item.reason))
            case "recalibrate":
                assert item.run is not None
                assert item.onset_s is not None
                assert item.last_run is not None
                self.calibration_from = (float(item.run), item.onset_s)
                self.calibration_runs = self.planned_runs = item.last_run
                return {"run": item.run, "onset_s": item.onset_s, "last_run": item.last_run}
            case "stop":
                self.stopped = True
        return {}

    def answered(self, token: str | None, kind: str) -> dict[str, Any] | None:
        """Return the answer of a command that was carried out before; None if it is new.

        Raises
        ------
        ProtocolError
            The token is that of another command.
        """
        if token is None or token not in self._answers:
            return None
        was, answer = self._answers[token]
        if was != kind:
            raise ProtocolError(f"token {token!r} named the command {was} before, got {kind}; each has its own token")
        return answer

    def decodes(self, run: int) -> bool:
        """Whether trials of a run are to be decoded, once there is a bundle."""
        return self.bundle is not None or run > self.calibration_runs

    def calibrates(self, run: int) -> bool:
        """Whether a decoder of this session is fitted to trials of a run."""
        begun = self._settings.decode.bundle is None or bool(self.calibration_from)
        return begun and run <= self.calibration_runs

    def withheld(self, run: int) -> str | None:
        """Why a trial of a run that becomes due now is not decoded; None if it is."""
        return self.bad_runs.get(run) or ("decoding is paused" if self.paused else None)

    # judging --------------------------------------------------------------------------------------------------

    def judge(self, asked: Control, progress: Progress, categories: Sequence[str]) -> Command:
        """Turn a request into a command.

        Parameters
        ----------
        asked : Control
        progress : Progress
            How far the scan has come.
        categories : sequence of str
            Of the decoder.

        Raises
        ------
        ProtocolError
            It makes no sense now; the text says why.
        """
        command = Command(
            token=asked.token,
            command=asked.command,
            reason=asked.reason,
            run=asked.run,
            target=asked.target,
            regions=None if asked.regions is None else tuple(asked.regions),
            threshold=asked.threshold,
            half_life_s=asked.half_life_s,
        )
        match asked.command:
            case "pause" if self.paused:
                raise ProtocolError("decoding is paused already")
            case "resume" if not self.paused:
                raise ProtocolError("decoding is not paused")
            case "stop" if self.stopped:
                raise ProtocolError("the session is ending already")
            case "feedback":
                self._judge_feedback(command, categories)
            case "bad_run":
                self._judge_run(command, progress)
        return command

    def _judge_run(self, command: Command, progress: Progress) -> None:
        assert command.run is not None
        if command.run in self.bad_runs:
            raise ProtocolError(f"{self.bad_runs[command.run]} before")
        begun = progress.run or progress.closed
        if command.run > begun:
            raise ProtocolError(f"run {command.run}: expected one that has begun, 1 to {begun}")

    def _judge_feedback(self, command: Command, categories: Collection[str]) -> None:
        if self.feedback.score == "none":
            raise ProtocolError("this session has no score for feedback; choose one in [feedback] of the settings")
        if command.half_life_s and self.feedback.of_trials:
            raise ProtocolError(f"half_life_s: expected none, the score {self.feedback.score} is not smoothed")
        wanted = changed(self.feedback, command)
        problems = list(feedback_problems(wanted, self._settings.estimate.regions))
        of_category = wanted.score in ("category", "two_alternative")
        if command.target and of_category and categories and command.target not in categories:
            known = ", ".join(categories)
            problems.append(f"target: expected a category of the decoder ({known}), got {command.target!r}")
        if problems:
            raise ProtocolError("; ".join(problems))

    def judge_recalibration(self, asked: Mode, progress: Progress) -> Command:
        """Turn a request to calibrate again into a command; errors as of `judge`."""
        runs = asked.runs or self._settings.calibration.runs
        if not runs:
            raise ProtocolError("runs: expected how many runs are to calibrate, as the settings say none")
        first = progress.run or progress.closed + 1
        assert asked.token is not None
        return Command(
            token=asked.token,
            command="recalibrate",
            reason=asked.reason,
            run=first,
            onset_s=progress.scanned_s if progress.run else 0.0,
            last_run=first + runs - 1,
        )


def changed(feedback: FeedbackSettings, command: Command) -> FeedbackSettings:
    """Return settings of a score with what a command tells."""
    told = {name: getattr(command, name) for name in ("target", "regions", "threshold", "half_life_s")}
    return replace(feedback, **{name: value for name, value in told.items() if value is not None})
