"""Where the elements of a DICOM data set lie in a file, found in bounded time and memory.

Nothing is converted here and nothing is copied: an element is a span of the file. Sequences are opened only when
asked for, so a volume whose series is known costs a walk over its top level.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_ELEMENTS = 4_000_000
MAX_DEPTH = 16
PIXEL_DATA = 0x7FE00010

_PIXEL_GROUP = 0x7FE00000

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US"
_KNOWN = _LONG | frozenset(_SHORT.split())
_PREAMBLE = 132
_TRANSFER_SYNTAX = 0x00020010
IMPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"


class Damaged(ValueError):  # noqa: N818 - a state of a file rather than a fault
    """The bytes are no data set, or end within one."""


class Span(NamedTuple):
    """One element: value representation (empty if implicit), first byte of its value, its length, which may be open."""

    vr: bytes
    start: int
    length: int

    @property
    def open(self) -> bool:
        """Whether a delimiter ends the value instead of a length."""
        return self.length == _UNDEFINED


@dataclass(frozen=True, slots=True)
class _Coding:
    explicit: bool
    order: str
    pair: struct.Struct
    short: struct.Struct
    long: struct.Struct


def _coding(explicit: bool, order: str) -> _Coding:
    return _Coding(explicit, order, struct.Struct(f"{order}HH"), struct.Struct(f"{order}H"), struct.Struct(f"{order}I"))


_EXPLICIT, _EXPLICIT_BIG, _IMPLICIT = _coding(True, "<"), _coding(True, ">"), _coding(False, "<")


@dataclass(slots=True)
class _Budget:
    left: int = MAX_ELEMENTS


@dataclass(slots=True)
class Elements:
    """One level of a data set.

    Attributes
    ----------
    content : bytes
        What the spans point into: the file, or its inflated form.
    spans : dict of int to Span
        By tag, ``group << 16 | element``.
    syntax : str
        Transfer syntax of the file.
    """

    content: bytes
    spans: dict[int, Span]
    syntax: str
    _coding: _Coding
    _depth: int = 0
    _budget: _Budget = field(default_factory=_Budget)
    _opened: dict[int, list[Elements]] = field(default_factory=dict)

    @property
    def order(self) -> str:
        """Byte order of numbers, ``<`` or ``>``."""
        return self._coding.order

    def raw(self, tag: int) -> bytes:
        """Value of an element as stored; empty if absent or of open length."""
        span = self.spans.get(tag)
        return b"" if span is None or span.open else self.content[span.start : span.start + span.length]

    def items(self, tag: int) -> list[Elements]:
        """Items of a sequence; empty if absent.

        Raises
        ------
        Damaged
            If it is not a sequence, too deep or too long.
        """
        opened = self._opened.get(tag)
        if opened is not None:
            return opened
        span = self.spans.get(tag)
        items: list[Elements] = []
        if span is not None:
            coding = _IMPLICIT if span.vr == b"UN" else self._coding
            at, end = span.start, span.start + span.length
            while at < end:
                item, length = _head(self.content, at, end, coding)
                if item != _ITEM:
                    break
                stop = end if length == _UNDEFINED else at + 8 + length
                if stop > end:
                    raise Damaged("an item reaches beyond its sequence")
                spans, at = _walk(self.content, at + 8, stop, coding, self._depth + 1, self._budget, None)
                items.append(Elements(self.content, spans, self.syntax, coding, self._depth + 1, self._budget))
        self._opened[tag] = items
        return items


def parse(content: bytes, limit: int, stop: int | None = None) -> Elements:
    """Find the top level of a DICOM file, up to its pixels.

    Parameters
    ----------
    content : bytes
        The file.
    limit : int
        Largest inflated size, bytes.
    stop : int or None
        Skip what lies between this tag and the pixels.

    Raises
    ------
    Damaged
        If the bytes are no data set or end within one; the pixels may be cut short.
    """
    budget = _Budget()
    meta, at = _walk(content, _PREAMBLE, len(content), _EXPLICIT, 0, budget, 0x00030000)
    span = meta.get(_TRANSFER_SYNTAX)
    if span is None:
        raise Damaged("no transfer syntax")
    syntax = content[span.start : span.start + span.length].decode("latin-1").strip(" \0")
    coding = {IMPLICIT: _IMPLICIT, EXPLICIT_BIG: _EXPLICIT_BIG}.get(syntax, _EXPLICIT)
    if syntax == DEFLATED:
        try:
            content, at = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[at:], limit), 0
        except zlib.error as error:
            raise Damaged(f"deflated data set: {error}") from None
    spans, _ = _walk(content, at, len(content), coding, 0, budget, stop)
    return Elements(content, {**meta, **spans}, syntax, coding, 0, budget)


def _head(content: bytes, at: int, end: int, coding: _Coding) -> tuple[int, int]:
    """Tag and length of an item or a delimiter."""
    if at + 8 > end:
        raise Damaged("ends within a sequence")
    group, element = coding.pair.unpack_from(content, at)
    (length,) = coding.long.unpack_from(content, at + 4)
    return group << 16 | element, length


def _walk(
    content: bytes, at: int, end: int, coding: _Coding, depth: int, budget: _Budget, stop: int | None
) -> tuple[dict[int, Span], int]:
    """Find the elements of one level from byte `at`; return them and the byte after them."""
    if depth > MAX_DEPTH:
        raise Damaged(f"sequences more than {MAX_DEPTH} deep")
    spans: dict[int, Span] = {}
    explicit, pair, short, long = coding.explicit, coding.pair, coding.short, coding.long
    while at < end:
        if at + 8 > end:
            raise Damaged("ends within an element")
        group, element = pair.unpack_from(content, at)
        tag = group << 16 | element
        if tag == _ITEM_END:
            return spans, at + 8
        if stop is not None and stop <= tag < _PIXEL_GROUP:
            return spans, at
        budget.left -= 1
        if budget.left < 0:
            raise Damaged(f"more than {MAX_ELEMENTS} elements")
        vr = b""
        if explicit:
            vr = content[at + 4 : at + 6]
            if vr in _LONG:
                if at + 12 > end:
                    raise Damaged("ends within an element")
                (length,) = long.unpack_from(content, at + 8)
                at += 12
            elif vr in _KNOWN:
                (length,) = short.unpack_from(content, at + 6)
                at += 8
            else:
                raise Damaged(f"value representation {vr!r}")
        else:
            (length,) = long.unpack_from(content, at + 4)
            at += 8
        if tag == PIXEL_DATA and depth == 0:
            spans[tag] = Span(vr, at, length)
            return spans, end
        if length == _UNDEFINED:
            start, after = at, _skip(content, at, end, _IMPLICIT if vr == b"UN" else coding, depth + 1, budget)
            spans[tag], at = Span(vr, start, after - start), after
            continue
        if at + length > end:
            raise Damaged("ends within a value")
        spans[tag] = Span(vr, at, length)
        at += length
    return spans, at


def _skip(content: bytes, at: int, end: int, coding: _Coding, depth: int, budget: _Budget) -> int:
    """Return the byte after the delimiter of a sequence of open length."""
    while True:
        tag, length = _head(content, at, end, coding)
        at += 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise Damaged("something other than an item in a sequence")
        if length == _UNDEFINED:
            _, at = _walk(content, at, end, coding, depth, budget, None)
        elif at + length > end:
            raise Damaged("ends within an item")
        else:
            at += length
