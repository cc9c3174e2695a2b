"""Requests of programs and pages that do not speak the daemon's own protocol: checked, passed on, answered in words."""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from rtdecode import client as wire
from rtdecode.errors import ProtocolError
from rtdecode.publish import requests

_KINDS: dict[str, type[requests.Request]] = {
    str(kind.__struct_config__.tag): kind for kind in typing.get_args(requests.AnyRequest)
}
_NOT_HERE = ("replay", "snapshot")


async def ask(
    request: Callable[..., Awaitable[dict[str, Any]]], kind: object, fields: Mapping[str, Any], *, words: bool = False
) -> dict[str, Any]:
    """Pass a request on; return its answer: `ok`, and `error` and `code` where it was refused.

    Parameters
    ----------
    request : callable
        As of `rtdecode.client.AsyncClient`.
    kind : str
    fields : mapping
    words : bool
        The fields are all texts, to be read as what the request needs.
    """
    try:
        asked = _checked(kind, fields, words=words)
        answer = await request(str(kind), **asked)
    except wire.RequestError as error:
        return {"ok": False, "error": str(error), "code": error.code}
    except ProtocolError as error:
        return {"ok": False, "error": str(error), "code": ""}
    except TimeoutError as error:
        return {"ok": False, "error": str(error), "code": "timeout"}
    return {name: value for name, value in answer.items() if name not in ("v", "id")}


def _checked(kind: object, fields: Mapping[str, Any], *, words: bool) -> dict[str, Any]:
    struct = _KINDS.get(kind) if isinstance(kind, str) and kind not in _NOT_HERE else None
    if struct is None:
        known = ", ".join(name for name in _KINDS if name not in _NOT_HERE)
        raise ProtocolError(f"request: expected one of {known}, got {str(kind)[:40]!r}")
    try:
        asked = msgspec.convert({**fields, "request": kind, "v": 1, "id": 0}, struct, strict=not words)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProtocolError(f"request not understood: {error}") from None
    plain = msgspec.to_builtins(asked)
    return {name: plain[name] for name in fields if name not in ("request", "v", "id", "expires")}
