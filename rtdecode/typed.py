"""Data from outside as typed structures: checked once, where they are opened, with the place of what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from rtdecode.errors import RtdecodeError

T = TypeVar("T")
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$(?P<place>.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\.\.\.|\d+)\]")
_ANY_KEY = "..."


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of structures that are read from files: fields that they do not know are refused."""


def checked(raw: object, kind: type[T], *, source: str, error: type[RtdecodeError]) -> T:
    """Make a structure of plain data.

    Parameters
    ----------
    raw : object
        As parsers of JSON, TOML and msgpack give it.
    kind : type
        What it must be: a `Table`, or any type that msgspec knows.
    source : str
        Where it comes from, for the message.
    error : type of RtdecodeError
        What to raise.

    Raises
    ------
    RtdecodeError
        Of the kind `error`: ``source: path: expected ..., got ...``.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as problem:
        steps = _steps(raw, kind, str(problem))
        raise error(f"{source}: {_told(str(problem), raw, steps)}") from None


def _steps(raw: object, kind: type[Any], message: str) -> list[str | int]:
    """Path to what is wrong; keys that msgspec does not tell are found by trying each alone."""
    place = _split(message)[1]
    steps: list[str | int] = []
    for name, index in _STEP.findall(place):
        if name:
            steps.append(name)
        elif index == _ANY_KEY:
            steps.append(_wrong_key(raw, kind, steps, message))
        else:
            steps.append(int(index))
    return steps


def _wrong_key(raw: object, kind: type[Any], steps: list[str | int], message: str) -> str:
    keys: Iterable[str] = list(_at(raw, steps))
    for key in keys:
        try:
            msgspec.convert(_only(raw, steps, key), kind)
        except msgspec.ValidationError as problem:
            if str(problem) == message:
                return key
    return _ANY_KEY


def _only(raw: Any, steps: list[str | int], key: str) -> Any:
    """Copy of the data in which the mapping at `steps` has one key only."""
    if not steps:
        return {key: raw[key]}
    first, rest = steps[0], steps[1:]
    if isinstance(first, int):
        return [_only(one, rest, key) if i == first else one for i, one in enumerate(raw)]
    return {name: _only(one, rest, key) if name == first else one for name, one in raw.items()}


def _at(raw: Any, steps: list[str | int]) -> Any:
    for step in steps:
        raw = raw[step]
    return raw


def _split(message: str) -> tuple[str, str]:
    found = _PLACE.match(message)
    assert found is not None  # every text matches
    return found["what"], found["place"] or ""


def _told(message: str, raw: object, steps: list[str | int]) -> str:
    what = _split(message)[0]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    if field := re.fullmatch(r"Object missing required field `(.*)`", what):
        return f"{_joined(path, field[1])}: expected a value, got none"
    if field := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return f"{_joined(path, field[1])}: expected no such field: it is of another version, or misspelt"
    if value := re.fullmatch(r"Invalid (?:enum )?value (.*)", what):
        return f"{path}: expected one of those that this version knows, got {value[1]}"
    expected = what[0].lower() + what[1:].replace("`", "")
    try:
        value = _at(raw, steps)
    except (KeyError, IndexError, TypeError):
        return f"{path}: {expected}"
    shown = "" if isinstance(value, Mapping | list) else f" ({value!r:.60})"
    return f"{path or 'content'}: {expected}{shown}"


def _joined(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
