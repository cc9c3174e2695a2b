"""One process a session folder."""

from __future__ import annotations

import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from rtdecode.clock import Clock
from rtdecode.errors import JournalError


class FolderLock:
    """Held from the making of this object until `close`, or until the process ends, however it ends.

    Parameters
    ----------
    path : Path
        File that holds the owner's name.
    clock : Clock

    Raises
    ------
    JournalError
        Another process holds it: the text names it. Or the file cannot be made.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise JournalError(f"{path}: cannot be made: {error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._file)
            raise JournalError(
                f"{path.parent.parent}: this session is being recorded by {owner}; stop it first"
            ) from None
        since = datetime.fromtimestamp(clock.wall(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)

    def close(self) -> None:
        """Let others have the folder."""
        os.close(self._file)
