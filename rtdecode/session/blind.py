"""What is shown in a blinded session: score and sham are both made, and the seal decides which is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rtdecode import client as wire
from rtdecode.blinding.allocation import ARMS, Envelope, Seal, read_key, seal_of, seed_of
from rtdecode.blinding.sham import Place, Sham, sham_of
from rtdecode.errors import JournalError, SettingsError
from rtdecode.protocol_file import Protocol, ShamPlan
from rtdecode.records import RegisteredVolume
from rtdecode.score_settings import BlindingSettings
from rtdecode.session.entries import read_outputs

Keep = Callable[[str, bytes], None]


class Blind:
    """One code path for both arms; a part of the fold over inputs.

    Parameters
    ----------
    seal : Seal
    key : bytes
    plan : ShamPlan
    session : str
        Identifier of the session.
    t_r_s : float
        Time between two scores, seconds.
    keep : callable
        Keeps an envelope under the name of its place.
    donor : mapping of tuple of int to float
        What the donor of a yoked sham was shown.

    Attributes
    ----------
    seal : Seal
    shown : int
        Which of a pair (score, sham) is told.
    """

    def __init__(
        self,
        seal: Seal,
        key: bytes,
        plan: ShamPlan,
        session: str,
        t_r_s: float,
        keep: Keep,
        donor: Mapping[Place, float] | None = None,
    ) -> None:
        self.seal = seal
        self.shown = ARMS.index(seal.arm(key))
        self._plan = plan
        self._sham: Sham = sham_of(plan, seed_of(key, session), t_r_s, donor or {})
        self._envelope = Envelope(key, session)
        self._keep = keep

    @property
    def regions(self) -> tuple[str, ...]:
        """Regions of the sham that is the same score of others."""
        return self._plan.regions

    @property
    def target(self) -> str:
        """Target of such a sham."""
        return self._plan.target

    def pair(self, place: Place, real: float, other: float) -> tuple[float, float]:
        """Return score and sham."""
        return real, self._sham.next(place, real, other)

    def keep(self, place: str, raw: tuple[float, float], value: tuple[float | None, float | None]) -> None:
        """Seal score and sham as they came, and as they would be displayed."""
        shown = (math.nan if one is None else one for one in value)
        self._keep(place, self._envelope.close(place, (*raw, *shown)))


def open_blind(
    settings: BlindingSettings, protocol: Protocol | None, participant: str, session: str, keep: Keep
) -> Blind | None:
    """Return what blinds a session; None where the settings name no allocation.

    Parameters
    ----------
    settings : BlindingSettings
    protocol : Protocol or None
    participant : str
        BIDS label.
    session : str
        Identifier of the session.
    keep : callable
        As of `Blind`.

    Raises
    ------
    SettingsError
        Allocation, key, donor and protocol do not belong together.
    """
    if settings.allocation is None:
        return None
    if settings.key is None or protocol is None or protocol.sham is None:
        raise SettingsError(["$.blinding: expected a key, and session.protocol with a section [sham], got less"])
    key = read_key(settings.key)
    seal = seal_of(settings.allocation, protocol.hash, participant)
    donor: dict[Place, float] = {}
    if protocol.sham.kind == "yoked":
        if settings.donor is None:
            raise SettingsError(["$.blinding.donor: expected the session folder of a donor for a yoked sham, got none"])
        donor = shown_in(settings.donor)
    return Blind(seal, key, protocol.sham, session, protocol.t_r_s, keep, donor)


def withheld(volume: RegisteredVolume, blind: Blind | None) -> RegisteredVolume:
    """Return what may be told of a volume: in a blinded session no signals, which beside a score would tell its arm."""
    return volume if blind is None else replace(volume, regions={}, parcels={})


def shown_in(folder: Path) -> dict[Place, float]:
    """Return the scores that a recorded session has shown, by run and volume, or run and number of the trial's score.

    Raises
    ------
    SettingsError
        It has shown none, or is no session.
    """
    found: dict[Place, float] = {}
    counts: dict[int, int] = {}
    try:
        for _, entry in read_outputs(folder / "journal" / "outputs.journal"):
            if entry.topic != "feedback":
                continue
            message = wire.unpack(entry.topic.encode(), entry.payload)
            assert isinstance(message, wire.Feedback)
            run = message.run or 0
            place = message.volume or 0
            if message.trial is not None:
                place = counts[run] = counts.get(run, -1) + 1
            if message.raw is not None:
                found[run, place] = message.raw
    except (OSError, JournalError) as error:
        raise SettingsError([f"$.blinding.donor: expected the folder of a recorded session: {error}"]) from None
    if not found:
        raise SettingsError([f"$.blinding.donor: expected a session with scores for feedback, found none in {folder}"])
    return found
