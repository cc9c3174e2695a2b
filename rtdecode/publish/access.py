"""Who may connect to the daemon, and what they may ask: named keys with roles, in one file.

The file holds the daemon's own pair of keys and the public key of each client. The secret of a client is in the file
that it is given (`new_key`), and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import tomli_w
import zmq
import zmq.utils.z85
from msgspec import Meta

from rtdecode.errors import Forbidden, KeysError
from rtdecode.publish import requests
from rtdecode.publish_settings import ROLES, Role
from rtdecode.typed import Table, checked

SCHEMA = "rtdecode.keys/1"
KeyName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
_Z85 = Annotated[str, Meta(min_length=40, max_length=40)]
_LEAST: dict[type[requests.Request], Role] = {
    requests.Ping: "observe",
    requests.Snapshot: "observe",
    requests.Replay: "observe",
    requests.Event: "experiment",
}
_log = logging.getLogger(__name__)


class ClientKey(Table, frozen=True, kw_only=True):
    """One client that has been given a key.

    Attributes
    ----------
    name : str
        Of the client.
    role : {"observe", "experiment", "operate"}
        What it may ask.
    public : str
        Its public key, as ZeroMQ writes them (Z85).
    made : str
        When, UTC.
    revoked : str
        When it was revoked, UTC; empty while it holds.
    """

    name: KeyName
    role: Role
    public: _Z85
    made: str
    revoked: str = ""


class Keys(Table, frozen=True, kw_only=True):
    """What the file holds.

    Attributes
    ----------
    schema : str
        ``"rtdecode.keys/1"``.
    public, secret : str
        Of the daemon.
    clients : tuple of ClientKey
        Those revoked as well.
    """

    schema: str
    public: _Z85
    secret: _Z85
    clients: tuple[ClientKey, ...] = ()

    def of(self, name: str) -> ClientKey | None:
        """Return the key of a client that holds; None if there is none."""
        return next((key for key in self.clients if key.name == name and not key.revoked), None)


def least_role(kind: type[requests.Request]) -> Role:
    """Return the role that a kind of request needs: to operate, where nothing else is said."""
    return _LEAST.get(kind, "operate")


def read_keys(path: Path) -> Keys:
    """Read a file of keys.

    Raises
    ------
    KeysError
        It cannot be read, is none, or is of another version.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeysError(f"{path}: expected a file of `rtdecode keys new`: {error}") from None
    found = checked(raw, Keys, source=str(path), error=KeysError)
    if found.schema != SCHEMA:
        raise KeysError(f"{path}: expected schema {SCHEMA}, got {found.schema}; make the keys anew")
    return found


def new_key(path: Path, name: str, role: Role, out: Path) -> None:
    """Give a client a key; make the file of keys where there is none.

    Parameters
    ----------
    path : Path
        The file of keys, for the daemon.
    name : str
    role : {"observe", "experiment", "operate"}
    out : Path
        File to make for the client; `rtdecode.client.Client` reads it.

    Raises
    ------
    KeysError
        The name has a key, or a file cannot be read or written.
    """
    if path.exists():
        keys = read_keys(path)
    else:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        keys = Keys(schema=SCHEMA, public=public, secret=secret)
    if keys.of(name) is not None:
        raise KeysError(f"{path}: {name} has a key already; revoke it first (rtdecode keys revoke {name})")
    public, secret = (half.decode() for half in zmq.curve_keypair())
    fields = {"name": name, "role": role, "public": public, "made": _now()}
    made = checked(fields, ClientKey, source=f"key {name}", error=KeysError)
    told = {"rtdecode": "client key", "v": 1, "name": name, "role": role}
    content = json.dumps({**told, "server": keys.public, "public": public, "secret": secret}, indent=1)
    _write(out, content + "\n", exclusive=True)
    _write_keys(path, msgspec.structs.replace(keys, clients=(*keys.clients, made)))


def revoke(path: Path, name: str) -> None:
    """Let a client's key hold no longer; a daemon that runs cuts it off.

    Raises
    ------
    KeysError
        There is no such key, or the file cannot be read or written.
    """
    keys = read_keys(path)
    held = keys.of(name)
    if held is None:
        known = ", ".join(key.name for key in keys.clients if not key.revoked) or "none"
        raise KeysError(f"{path}: expected the name of a key that holds ({known}), got {name!r}")
    ended = msgspec.structs.replace(held, revoked=_now())
    _write_keys(
        path, msgspec.structs.replace(keys, clients=tuple(ended if one is held else one for one in keys.clients))
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_keys(path: Path, keys: Keys) -> None:
    _write(path, "# Made by `rtdecode keys`. Holds a secret: nobody else may read it.\n" + tomli_w.dumps(_plain(keys)))


def _plain(keys: Keys) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(keys)
    return plain


def _write(path: Path, text: str, *, exclusive: bool = False) -> None:
    """Write a file that its owner alone may read: all of it or nothing."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        if exclusive and path.exists():
            raise KeysError(f"{path}: exists already; move it away, or choose another --out")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.rename(path)
    except OSError as error:
        raise KeysError(f"{path}: cannot be written: {error.strerror or error}") from None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes
    ----------
    name : str
        Of the key; empty where no keys are asked for.
    role : {"observe", "experiment", "operate"} or None
        None: the key was revoked.
    """

    name: str
    role: Role | None

    def check(self, request: requests.AnyRequest) -> None:
        """Refuse what the role does not allow.

        Raises
        ------
        Forbidden
            The text says which role does.
        """
        if self.role is None:
            raise Forbidden(f"the key {self.name} was revoked")
        least = least_role(type(request))
        if ROLES.index(self.role) < ROLES.index(least):
            kind = type(request).__struct_config__.tag
            raise Forbidden(
                f"the key {self.name} has the role {self.role}; {kind!r} may be asked by the role {least} and above "
                "(rtdecode keys new NAME --role)"
            )


ANYBODY = Caller("", "operate")
"""Who asks where no keys are asked for: somebody on this machine."""


class Access:
    """The keys of a running daemon, read again whenever their file changes.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    secret : bytes
        Of the daemon; a change of it counts from the next start on.

    Raises
    ------
    KeysError
        The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._sign()
        self._keys = read_keys(path)
        self.secret = self._keys.secret.encode()
        self._by_key: dict[bytes, ClientKey] = self._holding()

    def _holding(self) -> dict[bytes, ClientKey]:
        return {zmq.utils.z85.decode(key.public): key for key in self._keys.clients if not key.revoked}

    def _sign(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._path)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def refresh(self) -> set[str]:
        """Read the file if it has changed; return the names whose keys no longer hold.

        A file that cannot be used changes nothing: what held goes on to hold, and the log says so.
        """
        sign = self._sign()
        if sign == self._seen:
            return set()
        self._seen = sign
        try:
            self._keys = read_keys(self._path)
        except KeysError as error:
            _log.error("keys stay as they were: %s", error)
            return set()
        before, self._by_key = self._by_key, self._holding()
        return {key.name for public, key in before.items() if public not in self._by_key}

    def name_of(self, public: bytes) -> str:
        """Return whose key this is (32 bytes); empty if it is nobody's, or revoked."""
        key = self._by_key.get(public)
        return "" if key is None else key.name

    def caller(self, name: str) -> Caller:
        """Return who asks, by the name that `name_of` told when the connection was made."""
        key = self._keys.of(name)
        return Caller(name, None if key is None else key.role)
