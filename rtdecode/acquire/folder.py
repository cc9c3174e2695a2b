"""What is in the scanner's export folder, what is known of its files, and the system's word that it changed."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
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


def files(folder: str, unlisted: Callable[[OSError], None]) -> Iterator[str]:
    """Paths of regular files that may hold a volume, below `folder`.

    Parameters
    ----------
    folder : str
    unlisted : callable
        Is told of each sub-folder that cannot be listed; it is passed over.

    Raises
    ------
    OSError
        If `folder` itself cannot be listed.
    """
    with os.scandir(folder) as entries:
        yield from _files(entries, 0, {_place(os.stat(folder))}, unlisted)


def _files(
    entries: Iterable[os.DirEntry[str]], depth: int, seen: set[tuple[int, int]], unlisted: Callable[[OSError], None]
) -> Iterator[str]:
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            regular, place = entry.is_file(), _place(entry.stat()) if entry.is_dir() else None
        except OSError:  # a link to itself
            continue
        if regular and not entry.name.lower().endswith(_UNFINISHED + _OTHERS):
            yield entry.path
        if place is None or place in seen or depth == _DEEPEST_FOLDER:
            continue
        seen.add(place)
        try:
            inner = os.scandir(entry.path)
        except OSError as error:
            unlisted(error)
            continue
        with inner:
            yield from _files(inner, depth + 1, seen, unlisted)


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``i9`` before ``i10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]
