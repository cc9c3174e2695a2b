"""Append-only, checksummed journal.

A journal is a file of records, each ``<mark 4 bytes><length u32><crc32 of the payload u32><crc32 of these twelve bytes
u32><msgpack map>``, little-endian. The first record holds the schema. A record is written before what it tells of is
used; it reaches the disk with the first record or call of `sync_if_due` that comes `fsync_s` after the last time, or
with `sync`.

While the disk refuses records they are held in memory, in their order, and written as soon as it takes them again; so
are those that it took and then failed to keep. A torn end (the process or machine stopped while writing) is left out
when reading, with a notice. Damage before the end is refused with its place: the mark lets the records after it be
found (`recover`).
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from rtdecode.clock import Clock
from rtdecode.disk import bring_to_disk
from rtdecode.errors import JournalError

SCHEMA = "rtdecode.session.journal/2"
HELD_BYTES = 256 << 20
MARK = b"\xf5rtj"
_HEAD = struct.Struct("<4sII")
_CHECK = struct.Struct("<I")
_FRAME_BYTES = _HEAD.size + _CHECK.size
_log = logging.getLogger(__name__)


class Journal:
    """One journal, open for appending. Thread-safe.

    Parameters
    ----------
    path : Path
        File to make; a journal belongs to one session.
    clock : Clock
    fsync_s : float
        Longest time a written record may stay in the operating system's cache, seconds.
    ready : callable, optional
        Whether what the records tell of has been written; while not, they are held.
    before_sync : callable, optional
        Brings to the disk what records tell of, before these.
    resume : bool
        Go on with a journal that exists, after its last whole record. A torn end is kept beside it.

    Raises
    ------
    JournalError
        The file exists or cannot be made; or, to resume, it does not exist or is damaged.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        fsync_s: float = 1.0,
        ready: Callable[[], bool] = lambda: True,
        before_sync: Callable[[], None] = lambda: None,
        resume: bool = False,
    ) -> None:
        try:
            end = _cut_torn_end(path) if resume else 0
            self._file = os.open(path, os.O_RDWR | (0 if resume else os.O_CREAT | os.O_EXCL), 0o644)
        except OSError as error:
            raise JournalError(f"{path}: cannot {'go on with' if resume else 'make'} the journal: {error}") from None
        self._path = path
        self._end = end
        self._held: deque[tuple[int, bytes]] = deque()
        self._held_bytes = 0
        self._clock = clock
        self._fsync_s = fsync_s
        self._ready = ready
        self._before_sync = before_sync
        self._written: list[tuple[int, bytes]] = []  # since the last time that all was on the disk
        self._synced = clock.monotonic()
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._refused = self._forgotten = ""
        if not resume:
            self.append("journal", schema=SCHEMA)
            bring_to_disk(path.parent)

    def append(self, kind: str, **fields: Any) -> int:
        """Write one record, or hold it while the disk refuses it; return the byte at which it begins.

        Raises
        ------
        JournalError
            The disk has refused records for so long that no more can be held.
        """
        payload = msgpack.packb({"kind": kind, "t_wall": self._clock.wall(), **fields})
        record = _framed(payload)
        with self._lock:
            if self._held_bytes + len(record) > HELD_BYTES:
                raise JournalError(f"{self._path}: {HELD_BYTES >> 20} MiB could not be written: {self.problem}")
            start = self._end
            self._held.append((start, record))
            self._held_bytes += len(record)
            self._end += len(record)
            self._write_held()
        self.sync_if_due()
        return start

    def sync_if_due(self) -> None:
        """Write what was held; bring to the disk what has stayed in the cache for `fsync_s`."""
        with self._lock:
            self._write_held()
            due = bool(self._written) and self._clock.monotonic() - self._synced >= self._fsync_s
        if due:
            self.sync()

    def sync(self) -> bool:
        """Bring everything that was appended so far to the disk; return whether it has taken it."""
        with self._syncing:
            with self._lock:
                self._write_held()
                held, written, self._written = bool(self._held), self._written, []
            if not written:
                return not held
            now = self._clock.monotonic()
            try:
                self._before_sync()
                os.fsync(self._file)
            except OSError as error:  # the system may have forgotten what it could not bring to the disk
                with self._lock:
                    self._held.extendleft(reversed(written + self._written))
                    self._held_bytes = sum(len(record) for _, record in self._held)
                    self._written = []
                    self._forgotten = self._told("cannot be brought to the disk", error)
                return False
            self._synced, self._forgotten = now, ""
            return not held

    def _write_held(self) -> None:
        if not self._held or not self._ready():
            return
        try:
            while self._held:
                start, record = self._held[0]
                done = 0
                while done < len(record):  # a disk that fills up may take a part
                    done += os.pwrite(self._file, record[done:], start + done)
                self._written.append(self._held.popleft())
                self._held_bytes -= len(record)
        except OSError as error:
            self._refused = self._told("cannot write", error)
        else:
            self._refused = ""

    @property
    def problem(self) -> str | None:
        """Why the disk does not take records; None while it does."""
        return self._refused or self._forgotten or None

    def _told(self, what: str, error: OSError) -> str:
        return f"{self._path.name}: {what}: {error.strerror or error}"

    def at(self, starts: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the records that begin at these bytes, as `append` has told.

        Raises
        ------
        JournalError
            One cannot be read back.
        """
        for start in starts:
            with self._lock:
                held = dict(self._held).get(start) if self._held else None
            try:
                frame = os.pread(self._file, _FRAME_BYTES, start) if held is None else held[:_FRAME_BYTES]
                length = _length(frame) or 0
                payload = os.pread(self._file, length, start + _FRAME_BYTES) if held is None else held[_FRAME_BYTES:]
            except OSError as error:
                raise JournalError(f"{self._path}: cannot read back: {error}") from None
            if not _intact(frame, payload):
                raise JournalError(f"{self._path}: record at byte {start}: expected it as written, got another")
            yield msgpack.unpackb(payload)

    def close(self) -> None:
        """Bring everything to the disk and close; `problem` tells if that could not be done."""
        self.sync()
        os.close(self._file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal after the schema record.

    Raises
    ------
    JournalError
        The file is no journal of this schema, or is damaged before its end.
    """
    return (record for _, record in enumerated(path))


def enumerated(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a journal as `read` does, each after the byte at which it begins."""
    for start, _, payload in _whole(path):
        if start:
            yield start, msgpack.unpackb(payload)


def _whole(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield first byte, byte after the last, and payload of each record; a torn end is left out, damage refused."""
    size = path.stat().st_size
    for start, end, payload in _stretches(path):
        if payload is not None:
            yield start, end, payload
        elif end < size:
            raise JournalError(
                f"{path}: bytes {start} to {end}: checksum differs, the file was altered; the records after them are "
                f"whole: rtdecode session recover {path.parent.parent}"
            )
        else:
            _log.warning("%s: torn or damaged end from byte %d on left out", path.name, start)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What `recover` found in one journal: whole records, and the stretches of bytes that hold none."""

    records: int
    damaged: tuple[tuple[int, int], ...]


def recover(path: Path) -> Recovered:
    """Rewrite a damaged journal with its whole records alone; the damaged file stays beside it as ``*.damaged``.

    A journal without damage is left as it is.

    Raises
    ------
    JournalError
        Not even the first record can be read, the disk refuses, or a file of that name is there from before.
    """
    records, damaged = 0, []
    draft = path.with_name(f"{path.name}.draft")
    aside = path.with_name(f"{path.name}.damaged")
    try:
        content = path.read_bytes()
        with draft.open("wb") as out:
            for start, end, payload in _stretches(path):
                if payload is not None:
                    records += 1
                    out.write(content[start:end])
                else:
                    damaged.append((start, end))
                    if start == 0:
                        out.write(_framed(msgpack.packb({"kind": "journal", "t_wall": 0.0, "schema": SCHEMA})))
            out.flush()
            os.fsync(out.fileno())
        if not damaged:
            draft.unlink()
        elif aside.exists():
            draft.unlink()
            raise JournalError(
                f"{aside}: exists already; move it away, it holds what an earlier recovery found damaged"
            )
        else:
            path.rename(aside)
            draft.rename(path)
    except OSError as error:
        raise JournalError(f"{path}: cannot be recovered: {error}") from None
    return Recovered(records, tuple(damaged))


def _cut_torn_end(path: Path) -> int:
    """Return where the last whole record ends; what follows it goes to a file beside the journal."""
    end = max((stop for _, stop, _ in _whole(path)), default=0)
    if end < path.stat().st_size:
        with path.open("rb") as stream:
            stream.seek(end)
            path.with_name(f"{path.name}.torn-{end}").write_bytes(stream.read())
        os.truncate(path, end)
    return end


def _stretches(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield first byte, byte after the last, and payload of each record; None for a stretch that is not one."""
    with _mapped(path) as content:
        start = 0
        while start < len(content):
            payload = _payload(content, start)
            end = _next_record(content, start) if payload is None else start + _FRAME_BYTES + len(payload)
            known = end < len(content) if payload is None else msgpack.unpackb(payload).get("schema") == SCHEMA
            if start == 0 and not known:
                raise JournalError(f"{path}: expected a journal of schema {SCHEMA}, got {_described(payload, content)}")
            yield start, end, payload
            start = end


def _next_record(content: mmap.mmap, start: int) -> int:
    """Return where the next whole record after a byte begins; the end of the file if none comes."""
    found = content.find(MARK, start + 1)
    while found >= 0 and _payload(content, found) is None:
        found = content.find(MARK, found + 1)
    return len(content) if found < 0 else found


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            raise JournalError(f"{path}: expected a journal of schema {SCHEMA}, got an empty file")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _described(payload: bytes | None, content: mmap.mmap) -> str:
    if payload is not None:
        return str(msgpack.unpackb(payload).get("schema"))
    return "that of an older version" if b"rtdecode.session.journal/1" in content[:100] else "another or a damaged file"


def _payload(content: mmap.mmap, start: int) -> bytes | None:
    """Return the payload of the record at a byte; None if no whole record is there."""
    frame = content[start : start + _FRAME_BYTES]
    length = _length(frame)
    if length is None:
        return None
    payload = content[start + _FRAME_BYTES : start + _FRAME_BYTES + length]
    return payload if _intact(frame, payload) else None


def _framed(payload: bytes) -> bytes:
    head = _HEAD.pack(MARK, len(payload), zlib.crc32(payload))
    return head + _CHECK.pack(zlib.crc32(head)) + payload


def _length(frame: bytes) -> int | None:
    """Return the length of the payload that a frame tells; None if it is damaged or none."""
    if len(frame) < _FRAME_BYTES:
        return None
    mark, length, _ = _HEAD.unpack_from(frame)
    (check,) = _CHECK.unpack_from(frame, _HEAD.size)
    return length if mark == MARK and zlib.crc32(frame[: _HEAD.size]) == check else None


def _intact(frame: bytes, payload: bytes) -> bool:
    if _length(frame) != len(payload):
        return False
    checksum: int = _HEAD.unpack_from(frame)[2]
    return zlib.crc32(payload) == checksum
