"""The processes of a demo: daemon, calibration and page, each with its log."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from rtdecode.errors import RtdecodeError

STOP_S = 180.0


class Processes:
    """Starts `rtdecode` commands and stops them in reverse order.

    Parameters
    ----------
    logs : Path
        Folder for one log file per process.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._running:
            self.stop(self._running[-1][0])

    def start(self, name: str, *arguments: str) -> None:
        """Start ``rtdecode ARGUMENTS`` under `name`."""
        log = (self._logs / f"{name}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "rtdecode", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches the demo alone, which stops them in order
        )
        self._running.append((name, process, log))

    def check(self, *, may_end: tuple[str, ...] = ()) -> None:
        """Raise if a process ended that should not have.

        Raises
        ------
        RtdecodeError
            Tells which, and the end of its log.
        """
        for name, process, _ in self._running:
            code = process.poll()
            if code is not None and (code != 0 or name not in may_end):
                log = self._logs / f"{name}.log"
                tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
                raise RtdecodeError(f"{name} ended with exit code {code}; the end of {log}:\n{tail}")

    def stop(self, name: str) -> int:
        """Ask a process to end, wait for it, and return its exit code."""
        index = next(i for i, entry in enumerate(self._running) if entry[0] == name)
        _, process, log = self._running.pop(index)
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            log.close()


def free_port() -> int:
    """Return a port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
