"""What is in the scanner's export folder, what is known of its files, and the system's word that it changed."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

logger = logging.getLogger(__name__)

_DEEPEST_FOLDER = 4
_UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload", "~")
_OTHERS = (".json", ".txt", ".tsv", ".csv", ".log", ".xml", ".bval", ".bvec", ".rec", ".ini", ".md")
_REMOTE = ("cifs", "smb3", "smbfs", "nfs", "nfs4", "afs", "9p", "fuse.sshfs", "fuse.glusterfs", "ceph", "vboxsf")
_MOUNT_POINT = 4
_OCTAL = re.compile(r"\\([0-7]{3})")
_DIGITS = re.compile(r"(\d+)")


@dataclass(slots=True)
class Unfinished:
    """A file that was not complete when last looked at: its size and time of change, and since when so."""

    state: tuple[int, int]
    since_s: float


@dataclass(slots=True)
class Growing:
    """A file that brings more volumes: its state when there was nothing new in it, and volumes taken so far."""

    state: tuple[int, int] | None
    taken: int


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("created", "modified", "moved", "closed"):
            self._wake.set()


def is_remote(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a folder is seen to be on a network mount, from where no file events come.

    Parameters
    ----------
    folder : Path
    mounts : Path
        Table of mounts as Linux keeps it; without one the answer is no.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    found: dict[Path, str] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        if len(fields := before.split(" ")) > _MOUNT_POINT and after:
            point = _OCTAL.sub(lambda escaped: chr(int(escaped[1], 8)), fields[_MOUNT_POINT])
            found[Path(point)] = after.split(" ")[0]
    place = folder.resolve()
    return next((found[at] in _REMOTE for at in (place, *place.parents) if at in found), False)


def observe(folder: Path, wake: threading.Event) -> BaseObserver | None:
    """Start native events; None where the system has none to give, polling then does all."""
    observer = Observer()
    observer.schedule(_Waker(wake), str(folder), recursive=True)
    try:
        observer.start()
    except OSError as error:
        logger.warning("no file events for %s, polling only: %s", folder, error)
        return None
    return observer


def files(folder: str, depth: int) -> Iterator[str]:
    """Paths of files that may hold a volume, below `folder`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth < _DEEPEST_FOLDER:
                    yield from files(entry.path, depth + 1)
            elif not entry.name.lower().endswith(_UNFINISHED + _OTHERS):
                yield entry.path


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``i9`` before ``i10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
