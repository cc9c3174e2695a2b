"""A sealed allocation: a file of hashes that anybody may hold, and a key that a third person keeps.

The hash of a participant is HMAC-SHA256, under the key, of the protocol, the participant, a random number and the arm:
without the key nobody can tell which arm it was made of; with it the daemon tries both.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec

from rtdecode.errors import BundleError, SettingsError
from rtdecode.typed import Table, checked

Arm = Literal["real", "sham"]
ARMS: tuple[Arm, Arm] = ("real", "sham")
SCHEMA = "rtdecode.allocation/1"
KEY_BYTES = 32
_MAC_BYTES = 16


class Seal(Table, frozen=True, kw_only=True):
    """The arm of one participant, as nobody can read it without the key.

    Attributes
    ----------
    protocol : str
        Hash of the protocol that it is for.
    participant : str
        BIDS label.
    nonce : str
        A random number, so that equal arms have different hashes.
    hash : str
        Of all this and the arm.
    """

    protocol: str
    participant: str
    nonce: str
    hash: str

    def arm(self, key: bytes) -> Arm:
        """Return the arm.

        Raises
        ------
        SettingsError
            The key is not the one that it was sealed with, or the file was altered.
        """
        for arm in ARMS:
            if hmac.compare_digest(_hashed(key, self.protocol, self.participant, self.nonce, arm), self.hash):
                return arm
        raise SettingsError(
            [
                f"blinding: participant {self.participant}: expected the key that the allocation was sealed with, got "
                "another, or the allocation was altered"
            ]
        )


class _File(Table, frozen=True, kw_only=True):
    schema: str
    seals: tuple[Seal, ...]


def _hashed(key: bytes, *words: str) -> str:
    return hmac.new(key, "\0".join(words).encode(), hashlib.sha256).hexdigest()


def allocate(protocol: str, participants: Sequence[str], key: bytes, *, block: int = 4) -> tuple[Seal, ...]:
    """Draw the arms of participants, half of each in every block, and seal them.

    Parameters
    ----------
    protocol : str
        Its hash.
    participants : sequence of str
        BIDS labels, in the order in which they are to come.
    key : bytes
    block : int
        Participants among whom arms are balanced; even.

    Raises
    ------
    SettingsError
        A participant comes twice, or the block is odd.
    """
    if len(set(participants)) != len(participants):
        raise SettingsError([f"participants: expected each once, got {', '.join(participants)}"])
    if block < 2 or block % 2:
        raise SettingsError([f"--block: expected an even number, got {block}"])
    arms: list[Arm] = []
    while len(arms) < len(participants):
        drawn = list(ARMS) * (block // 2)
        secrets.SystemRandom().shuffle(drawn)
        arms += drawn
    seals = []
    for participant, arm in zip(participants, arms, strict=False):
        nonce = secrets.token_hex(16)
        hash_ = _hashed(key, protocol, participant, nonce, arm)
        seals.append(Seal(protocol=protocol, participant=participant, nonce=nonce, hash=hash_))
    return tuple(seals)


def new_key(path: Path) -> bytes:
    """Make a key and write it where only its owner may read it.

    Raises
    ------
    SettingsError
        There is a file of that name: a key that is overwritten is lost.
    """
    key = secrets.token_bytes(KEY_BYTES)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(key.hex() + "\n")
    except FileExistsError:
        raise SettingsError([f"{path}: exists already: expected a new name for the key"]) from None
    return key


def read_key(path: Path) -> bytes:
    """Read a key.

    Raises
    ------
    SettingsError
        It is none, or cannot be read.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no digits of base 16"
        raise SettingsError([f"{path}: expected a key of `rtdecode protocol allocate`: {why}"]) from None
    if len(key) != KEY_BYTES:
        raise SettingsError([f"{path}: expected a key of {KEY_BYTES} bytes, got {len(key)}"])
    return key


def write_seals(path: Path, seals: Sequence[Seal]) -> None:
    """Write an allocation; errors as of `new_key`."""
    content = msgspec.json.format(msgspec.json.encode(_File(schema=SCHEMA, seals=tuple(seals))), indent=1)
    try:
        with path.open("xb") as file:
            file.write(content + b"\n")
    except FileExistsError:
        raise SettingsError([f"{path}: exists already: an allocation is drawn once"]) from None


def read_seals(path: Path) -> tuple[Seal, ...]:
    """Read an allocation.

    Raises
    ------
    SettingsError
        It is none, or cannot be read.
    """
    try:
        found = checked(msgspec.json.decode(path.read_bytes()), _File, source=str(path), error=BundleError)
    except (OSError, msgspec.DecodeError, BundleError) as error:
        raise SettingsError([f"{path}: expected an allocation of `rtdecode protocol allocate`: {error}"]) from None
    if found.schema != SCHEMA:
        raise SettingsError([f"{path}: schema: expected {SCHEMA}, got {found.schema}"])
    return found.seals


def seal_of(path: Path, protocol: str, participant: str) -> Seal:
    """Return what an allocation holds of a participant.

    Raises
    ------
    SettingsError
        Nothing, or it is for another protocol.
    """
    own = [seal for seal in read_seals(path) if seal.participant == participant]
    if not own:
        raise SettingsError([f"{path}: expected participant {participant} in the allocation, found none"])
    if own[0].protocol != protocol:
        raise SettingsError([f"{path}: expected an allocation for protocol {protocol}, got one for {own[0].protocol}"])
    return own[0]


class Envelope:
    """Closes numbers of a session so that only the key opens them; all envelopes are of one size.

    Parameters
    ----------
    key : bytes
    session : str
        Identifier of the session.
    """

    def __init__(self, key: bytes, session: str) -> None:
        self._key = hmac.new(key, f"envelope\0{session}".encode(), hashlib.sha256).digest()

    def close(self, place: str, values: Sequence[float]) -> bytes:
        """Close some numbers; at most four, and a place is used once.

        Parameters
        ----------
        place : str
            What they are of.
        values : sequence of float
        """
        plain = struct.pack(f"<{len(values)}d", *values)
        closed = bytes(a ^ b for a, b in zip(plain, self._stream(place), strict=False))
        return closed + self._mac(place, closed)

    def open(self, place: str, envelope: bytes) -> tuple[float, ...]:
        """Return the numbers.

        Raises
        ------
        SettingsError
            The key is another one, or the envelope was altered.
        """
        closed, mac = envelope[:-_MAC_BYTES], envelope[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(place, closed)):
            raise SettingsError([f"{place}: expected what this key has sealed, got another key, or it was altered"])
        plain = bytes(a ^ b for a, b in zip(closed, self._stream(place), strict=False))
        return cast(tuple[float, ...], struct.unpack(f"<{len(plain) // 8}d", plain))

    def _stream(self, place: str) -> bytes:
        return hmac.new(self._key, f"stream\0{place}".encode(), hashlib.sha256).digest()

    def _mac(self, place: str, closed: bytes) -> bytes:
        return hmac.new(self._key, f"mac\0{place}\0".encode() + closed, hashlib.sha256).digest()[:_MAC_BYTES]


def seed_of(key: bytes, session: str) -> int:
    """Return the seed of what is drawn in a session, which nobody can draw again without the key."""
    return int.from_bytes(hmac.new(key, f"draws\0{session}".encode(), hashlib.sha256).digest()[:8], "little")
