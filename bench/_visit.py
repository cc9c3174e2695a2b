"""A simulated visit through the real daemon: real processes and sockets, the scanner in step with the daemon."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.demo.processes import free_port
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.system.test_resume import Daemons

SILENCE_S = 120.0
TOPICS = ("session", "run", "volume", "skipped", "fault", "reconstruction")


class Visit:
    """One visit. A volume is written only when no more than `ahead` are under way.

    Parameters
    ----------
    out : Path
        Must exist and be empty.
    plan : VisitPlan
    protocol : Protocol
    n_responsive : int
        Voxels that respond.
    ahead : int
    """

    def __init__(self, out: Path, plan: VisitPlan, protocol: Protocol, n_responsive: int, ahead: int) -> None:
        self.folder = out / "sub-sim_ses-01"
        self.seen: list[wire.Message] = []
        self._volumes = 0
        self._plan = plan
        self._ahead = ahead
        (out / "export").mkdir()
        plan.write_stimuli(out / "stimuli")
        self._addresses = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
        self._settings = out / "settings.toml"
        self._log = out / "calibration.log"
        raw = {
            "session": {"participant": "sim", "output": ".", "seed": plan.seed},
            "scanner": {"export_dir": "export"},
            "decode": {"stimuli": "stimuli"},
            "calibration": {"runs": plan.calibration_runs},
            "publish": dict(zip(("stream", "requests"), self._addresses, strict=True)),
        }
        self._settings.write_text(tomli_w.dumps(raw))
        participant = make_participant(plan.seed, protocol, ResponseParameters(n_responsive=n_responsive))
        self._scanner = Scanner(plan, participant, out / "export", SystemClock())

    def run(
        self,
        after_volume: Callable[[Daemons, wire.Client, int, int], None] = lambda *_: None,
        after_run: Callable[[Daemons], None] = lambda _: None,
    ) -> None:
        """Scan, calibrate and decode.

        Parameters
        ----------
        after_volume : callable
            Gets the daemon, the client, run and volume once a volume is written.
        after_run : callable
            Gets the daemon when all of a run has been published.
        """
        plan = self._plan
        with Daemons(self._settings) as daemons, wire.Client(*self._addresses, topics=list(TOPICS)) as client:
            daemons.await_answer(client)
            command = [sys.executable, "-m", "rtdecode", "calibrate", str(self._settings)]
            with self._log.open("wb") as log:
                calibration = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            written = 0

            def ended(runs: int) -> None:
                decoded = max(0, runs - plan.calibration_runs) * plan.trials_per_run
                self._until(client, lambda: len(self.of(wire.Run, state="ended")) >= runs)
                self._until(client, lambda: len(self.of(wire.Reconstruction, final=True)) >= decoded)
                if runs:
                    after_run(daemons)

            def hold(run: int) -> None:
                ended(run - 1)
                if run == plan.calibration_runs + 1:
                    self._until(client, lambda: self._decodes(calibration))

            def after(run: int, volume: int) -> None:
                nonlocal written
                written += 1
                after_volume(daemons, client, run, volume)
                self._until(client, lambda: self._volumes >= written - self._ahead)

            self._scanner.play(lambda message: client.event(**message), hold, after)
            ended(plan.runs)
            calibration.wait()

    def _decodes(self, calibration: subprocess.Popen[bytes]) -> bool:
        if calibration.poll() not in (None, 0):
            raise RuntimeError(f"the calibration failed:\n{self._log.read_text(encoding='utf-8', errors='replace')}")
        return bool(self.of(wire.Session, mode="decode"))

    def of(self, kind: type[wire.Message], **fields: object) -> list[Any]:
        """Messages of a kind that have these fields."""
        return [m for m in self.seen if type(m) is kind and all(getattr(m, k) == v for k, v in fields.items())]

    def _until(self, client: wire.Client, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SILENCE_S
        while not reached():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing came for {SILENCE_S:.0f} s")
            message = client.receive(0.2)
            if message is None:
                client.catch_up()
            else:
                self.seen.append(message)
                self._volumes += isinstance(message, (wire.Volume, wire.Skipped))
