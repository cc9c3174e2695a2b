"""Calibration as a client of the stream: betas come in, a bundle goes out, the daemon is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibration.calibrator import Calibrator, write_bundle
from rtdecode.bundle import EnginePack
from rtdecode.client import Beta, Client, RequestError, Run, Session
from rtdecode.errors import CalibrationError
from rtdecode.estimate.calibrated import MASK, MODEL, REFERENCE

_log = logging.getLogger(__name__)

TOPICS = ("session", "run", "beta")
ATTEMPTS = 6
STATUS_EVERY = 10
"""Trials between two points of the learning curve."""


class CalibrationRun:
    """Collects the betas of the calibration runs and writes the bundle when the last of these has ended.

    Parameters
    ----------
    client : Client
        Subscribed to `TOPICS`.
    calibrator : Calibrator
    pack : EnginePack
        The session's pack.
    folder : Path
        Session folder.
    """

    def __init__(self, client: Client, calibrator: Calibrator, pack: EnginePack, folder: Path) -> None:
        self._client = client
        self._calibrator = calibrator
        self._pack = pack
        self._folder = folder
        self._session: Session | None = None
        self._left_out: list[str] = []

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
        self._client.catch_up()
        for message in self._client.messages():
            match message:
                case Session():
                    self._session = message
                    if message.state == "ended":
                        raise CalibrationError(
                            f"the session ended after {self._calibrator.trials} calibration trials, before its "
                            f"calibration runs were complete"
                        )
                case Beta():
                    self._beta(message)
                case Run() if message.state == "ended" and message.run == self._runs():
                    return self._finish()
        raise CalibrationError("the stream ended")

    def _runs(self) -> int | None:
        return None if self._session is None else self._session.calibration_runs

    def _beta(self, message: Beta) -> None:
        runs = self._runs()
        if runs is None or message.run is None or message.run > runs or not message.final:
            return
        name = self._calibrator.known((message.stimulus, message.condition))
        if message.invalid is not None or message.beta is None:
            self._leave_out(message, message.invalid or "no values")
            return
        if name is None:
            self._leave_out(message, f"unknown stimulus {message.stimulus!r}, condition {message.condition!r}")
            return
        packed = message.beta
        beta = np.frombuffer(packed.data, packed.dtype).reshape(packed.shape)
        self._calibrator.add(beta, stimulus=name, run=message.run)
        if self._calibrator.trials % STATUS_EVERY == 0:
            self._publish_status("")

    def _leave_out(self, message: Beta, reason: str) -> None:
        _log.warning("trial %s left out of the calibration: %s", message.trial, reason)
        self._left_out.append(f"{message.trial}: {reason}")

    def _publish_status(self, note: str) -> None:
        status = self._calibrator.status()
        self._ask(
            self._client.calibration,
            trials=status.trials,
            percentile=status.percentile,
            interval=list(status.interval),
            note=note,
        )

    def _ask(self, request: Callable[..., object], *arguments: object, **fields: object) -> None:
        """Make a request, again while the daemon is being restarted."""
        for _ in range(ATTEMPTS - 1):
            try:
                request(*arguments, **fields)
            except TimeoutError:
                _log.warning("the daemon does not answer; asking again")
            else:
                return
        request(*arguments, **fields)

    def _finish(self) -> Path:
        assert self._session is not None
        session = self._folder
        target = session / "bundle"
        fit = self._calibrator.fit()
        identity = write_bundle(
            target,
            fit,
            pack=self._pack.identity,
            curve=self._calibrator.curve,
            copies={
                REFERENCE: _only(session, "*_boldref.nii.gz"),
                MASK: _only(session, "*_desc-brain_mask.nii.gz"),
                MODEL: _only(session, "*_desc-estimate_model.safetensors"),
            },
            provenance={
                "participant": self._session.participant,
                "session": self._session.session,
                "pack_name": self._pack.name,
                "left_out": self._left_out,
            },
        )
        figures = fit.figures
        self._ask(
            self._client.calibration,
            trials=self._calibrator.trials,
            percentile=figures["percentile"],
            interval=list(figures["percentile_interval"]),
            p_value=figures["percentile_p"],
            note=f"fitted: {figures['voxels']} voxels, category {figures['category_accuracy']:.0%} held out",
        )
        self._ask(self._client.mode, "decode", str(target))
        _log.info("bundle %s written to %s", identity, target)
        return target


def _only(session: Path, pattern: str) -> Path:
    found = sorted(session.glob(f"sub-*/ses-*/func/{pattern}"))
    if len(found) != 1:
        raise CalibrationError(f"{session}: expected one {pattern}, found {len(found)}")
    return found[0]
