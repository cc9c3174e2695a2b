"""What the participant is shown: a fold over the stream. Fixation, unless something new may be shown."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from time import monotonic
from typing import Any

from rtdecode import client as wire
from rtdecode.publish.display.contact import Contact

LATE_S = 2.0
"""What is received so long after it was published is not shown any more."""
STAYS_S = 10.0
"""How long something is shown where nothing new comes."""


class ParticipantView:
    """State of the participant's page.

    A picture is shown while its trial is supported by the evidence, a thermometer while feedback says so.

    Parameters
    ----------
    contact : Contact
        Of the board: whether the daemon lives, and how old a message is.
    clock : callable
        Monotonic clock of this machine, seconds.

    Attributes
    ----------
    version : int
        Grows with every change.
    """

    def __init__(self, contact: Contact, clock: Callable[[], float] = monotonic) -> None:
        self.version = 0
        self._contact, self._clock = contact, clock
        self._session = ""
        self._clear()

    def _clear(self) -> None:
        self.version += 1
        self._key = secrets.token_hex(4)  # no browser takes one session's picture for another's
        self._thermometer: dict[str, Any] | None = None
        self._picture: bytes | None = None
        self._number = 0
        self._of: tuple[str | None, int | None] = (None, None)
        self._supported: tuple[str | None, int | None] = (None, None)
        self._fed_at = self._pictured_at = 0.0

    def apply(self, message: wire.Message) -> None:
        """Take one message of the stream."""
        if message.session and message.session != self._session:
            self._session = message.session
            self._clear()
        now = self._clock()
        late = self._contact.since(message.t_published, now) > LATE_S
        match message:
            case wire.Run() | wire.Session():
                self._clear()
            case wire.Feedback(state="baseline"):
                self._thermometer = None
            case wire.Feedback(state="shown", step=int(step)) if not late and message.steps > 0:
                self._thermometer = {"step": step, "steps": message.steps, "held": False}
                self._fed_at = now
            case wire.Feedback():  # held: the last step goes on, and is told as such
                if self._thermometer is not None:
                    self._thermometer = {**self._thermometer, "held": True}
                    self._fed_at = now
            case wire.Score():
                supported = message.supported and message.invalid is None and not late
                self._supported = (message.trial, message.revision) if supported else (None, None)
                if self._supported[0] != self._of[0]:
                    self._picture = None
            case wire.Reconstruction():
                if late or (message.trial, message.revision) != self._supported:
                    return
                self._picture, self._of, self._pictured_at = bytes(message.image), self._supported, now
                self._number += 1
            case _:
                return
        self.version += 1

    def picture(self, key: str, number: int) -> bytes | None:
        """Return the encoded picture that `state` tells of, and no other."""
        return self._picture if (key, number) == (self._key, self._number) else None

    def state(self) -> dict[str, Any]:
        """Return what the page shows now, ready for JSON."""
        now, alive = self._clock(), self._contact.alive
        fed = alive and self._thermometer is not None and now - self._fed_at <= STAYS_S
        pictured = alive and self._picture is not None and now - self._pictured_at <= STAYS_S
        return {
            "thermometer": self._thermometer if fed else None,
            "picture": f"/participant/picture/{self._key}/{self._number}" if pictured else None,
            "alive": alive,
        }
