"""Append-only, checksummed journal.

A journal is a file of records, each ``<length u32><crc32 u32><msgpack map>`` little-endian. The first holds the
schema. A record is written before what it tells of is used; it reaches the disk with the first record or call of
`sync_if_due` that comes `fsync_s` after the last time. A torn last record (the process or machine stopped while
writing) is left out when reading, with a notice.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from rtdecode.clock import Clock
from rtdecode.errors import JournalError

SCHEMA = "rtdecode.journal/1"
_FRAME = struct.Struct("<II")
_log = logging.getLogger(__name__)


class Journal:
    """One journal, open for appending.

    Parameters
    ----------
    path : Path
        File to make; a journal belongs to one session.
    clock : Clock
    fsync_s : float
        Longest time a written record may stay in the operating system's cache, seconds.
    before_sync : callable, optional
        Brings to the disk what records tell of, before these.
    resume : bool
        Go on with a journal that exists, after its last whole record.

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
        before_sync: Callable[[], None] = lambda: None,
        resume: bool = False,
    ) -> None:
        try:
            end = 0
            if resume:
                end = max((end for _, _, end in _records(path)), default=0)
                os.truncate(path, end)
            self._stream = path.open("ab" if resume else "xb", buffering=0)
        except OSError as error:
            raise JournalError(f"{path}: cannot {'go on with' if resume else 'make'} the journal: {error}") from None
        self._path = path
        self._end = end
        self._clock = clock
        self._fsync_s = fsync_s
        self._before_sync = before_sync
        self._dirty = False
        self._synced = clock.monotonic()
        self._lock = threading.Lock()
        if not resume:
            self.append("journal", schema=SCHEMA)

    def append(self, kind: str, **fields: Any) -> int:
        """Write one record; return the byte at which it begins.

        Raises
        ------
        JournalError
            The disk refused it.
        """
        payload = msgpack.packb({"kind": kind, "t_wall": self._clock.wall(), **fields})
        record = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        with self._lock:
            start = self._end
            try:
                if self._stream.write(record) < len(record):
                    self._stream.truncate(start)
                    self._stream.seek(start)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._end += len(record)
                self._dirty = True
                self._sync_if_due()
            except OSError as error:
                raise JournalError(f"{self._path}: cannot write: {error}") from None
        return start

    def sync_if_due(self) -> None:
        """Bring to the disk what has stayed in the cache for `fsync_s`.

        Raises
        ------
        JournalError
            The disk refused it.
        """
        with self._lock:
            try:
                self._sync_if_due()
            except OSError as error:
                raise JournalError(f"{self._path}: cannot be brought to the disk: {error}") from None

    def _sync_if_due(self) -> None:
        now = self._clock.monotonic()
        if self._dirty and now - self._synced >= self._fsync_s:
            self._before_sync()
            os.fsync(self._stream.fileno())
            self._synced, self._dirty = now, False

    def at(self, starts: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yield the records that begin at these bytes, as `append` has told.

        Raises
        ------
        JournalError
            One cannot be read back.
        """
        try:
            with self._path.open("rb") as stream:
                for start in starts:
                    stream.seek(start)
                    payload = _payload(stream)
                    if payload is None:
                        raise JournalError(f"{self._path}: record at byte {start}: expected it as written, got another")
                    yield msgpack.unpackb(payload)
        except OSError as error:
            raise JournalError(f"{self._path}: cannot read back: {error}") from None

    def close(self) -> None:
        """Bring everything to the disk and close."""
        with self._lock:
            self._before_sync()
            os.fsync(self._stream.fileno())
            self._stream.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal after the schema record.

    Raises
    ------
    JournalError
        The file is no journal of this schema, or a record other than the last is damaged.
    """
    return (record for _, record in enumerated(path))


def enumerated(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a journal as `read` does, each after the byte at which it begins."""
    for record, start, _ in _records(path):
        if start:
            yield start, record


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield each whole record with its first byte and the byte after it, the schema record first."""
    size = path.stat().st_size
    start = 0
    with path.open("rb") as stream:
        while start < size:
            payload = _payload(stream)
            end = stream.tell()
            if payload is None:
                if end < size:
                    raise JournalError(f"{path}: record at byte {start}: checksum differs; the file was altered")
                _log.warning("%s: torn or damaged last record at byte %d left out", path.name, start)
                break
            record = msgpack.unpackb(payload)
            if start == 0 and record.get("schema") != SCHEMA:
                raise JournalError(f"{path}: expected schema {SCHEMA}, got {record.get('schema')}")
            yield record, start, end
            start = end
    if start == 0:
        raise JournalError(f"{path}: expected a journal of schema {SCHEMA}, got an empty or damaged file")


def _payload(stream: BinaryIO) -> bytes | None:
    """Read the record at the place of the stream; None if it is torn or damaged."""
    frame = stream.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    length, checksum = _FRAME.unpack(frame)
    payload = stream.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None
