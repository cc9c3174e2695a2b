"""Append-only, checksummed journal.

A journal is a file of records, each ``<length u32><crc32 u32><msgpack map>`` little-endian. The first holds the
schema. A record is written before what it tells of is used; it reaches the disk at most `fsync_s` later. A torn
last record (the process or machine stopped while writing) is left out when reading, with a notice.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        Longest time a written record may stay in the operating system's cache, seconds, while more are written.
    resume : bool
        Go on with a journal that exists, after its last whole record.

    Raises
    ------
    JournalError
        The file exists or cannot be made; or, to resume, it does not exist or is damaged.
    """

    def __init__(self, path: Path, clock: Clock, *, fsync_s: float = 1.0, resume: bool = False) -> None:
        try:
            if resume:
                end = max((end for _, end in _records(path)), default=0)
                os.truncate(path, end)
            self._stream = path.open("ab" if resume else "xb", buffering=0)
        except OSError as error:
            raise JournalError(f"{path}: cannot {'go on with' if resume else 'make'} the journal: {error}") from None
        self._path = path
        self._clock = clock
        self._fsync_s = fsync_s
        self._synced = clock.monotonic()
        self._lock = threading.Lock()
        if not resume:
            self.append("journal", schema=SCHEMA)

    def append(self, kind: str, **fields: Any) -> None:
        """Write one record.

        Raises
        ------
        JournalError
            The disk refused it.
        """
        payload = msgpack.packb({"kind": kind, "t_wall": self._clock.wall(), **fields})
        with self._lock:
            try:
                self._stream.write(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload)
                now = self._clock.monotonic()
                if now - self._synced >= self._fsync_s:
                    os.fsync(self._stream.fileno())
                    self._synced = now
            except OSError as error:
                raise JournalError(f"{self._path}: cannot write: {error}") from None

    def close(self) -> None:
        """Bring everything to the disk and close."""
        with self._lock:
            os.fsync(self._stream.fileno())
            self._stream.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal after the schema record.

    Raises
    ------
    JournalError
        The file is no journal of this schema, or a record other than the last is damaged.
    """
    for number, (record, _) in enumerate(_records(path)):
        if number:
            yield record


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole record and the byte after it, the schema record first."""
    data = path.read_bytes()
    offset = 0
    while offset < len(data):
        start = offset + _FRAME.size
        length, checksum = _FRAME.unpack_from(data, offset) if start <= len(data) else (len(data), 0)
        payload = data[start : start + length]
        if len(payload) < length:
            _log.warning("%s: torn last record at byte %d left out", path.name, offset)
            break
        if zlib.crc32(payload) != checksum:
            if start + length == len(data):
                _log.warning("%s: damaged last record at byte %d left out", path.name, offset)
                break
            raise JournalError(f"{path}: record at byte {offset}: checksum differs; the file was altered")
        record = msgpack.unpackb(payload)
        if offset == 0 and record.get("schema") != SCHEMA:
            raise JournalError(f"{path}: expected schema {SCHEMA}, got {record.get('schema')}")
        offset = start + length
        yield record, offset
    if offset == 0:
        raise JournalError(f"{path}: expected a journal of schema {SCHEMA}, got an empty or damaged file")
