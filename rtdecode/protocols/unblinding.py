"""Opens the seal of a recorded session; that it was opened is in its journal for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from rtdecode.blinding.allocation import Arm, Envelope
from rtdecode.blinding.allocation import Seal as Sealed
from rtdecode.clock import Clock
from rtdecode.derivatives.columns import line
from rtdecode.derivatives.names import whole
from rtdecode.errors import SettingsError
from rtdecode.session.entries import BlindedEntry, SealedEntry, read_inputs
from rtdecode.session.journal import Journal
from rtdecode.session.lock import FolderLock
from rtdecode.session.recording import session_identifier

TABLE = "unblinded.tsv"
COLUMNS = ("place", "arm", "score_raw", "sham_raw", "score", "sham")


def unblind(folder: Path, key: bytes, reason: str, clock: Clock) -> Arm:
    """Open the seal of a session, say so in its journal, and write scores and shams to ``journal/unblinded.tsv``.

    Parameters
    ----------
    folder : Path
        Session folder; nobody may be recording in it.
    key : bytes
    reason : str
        Why it is opened.
    clock : Clock

    Returns
    -------
    {"real", "sham"}
        What the participant was shown.

    Raises
    ------
    SettingsError
        The session is not blinded, or the key is another one. Nothing is written then.
    JournalError
        It is no session, is damaged, or is being recorded.
    """
    journals = folder / "journal"
    session = session_identifier(folder)
    entries = list(read_inputs(journals / "inputs.journal"))
    blinded = next((entry for entry in entries if isinstance(entry, BlindedEntry)), None)
    if blinded is None:
        raise SettingsError([f"{folder}: expected a blinded session, got one that was open from its start"])
    seal = Sealed(protocol=blinded.protocol, participant=blinded.participant, nonce=blinded.nonce, hash=blinded.hash)
    arm = seal.arm(key)
    rows = list(_opened(entries, Envelope(key, session), arm))
    lock = FolderLock(journals / "lock", clock)
    try:
        with closing(Journal(journals / "inputs.journal", clock, resume=True)) as journal:
            journal.append("unblinded", reason=reason)
        with whole(journals / TABLE) as draft:
            draft.write_text("".join([line(COLUMNS), *rows]), encoding="utf-8")
    finally:
        lock.close()
    return arm


def _opened(entries: Sequence[object], envelope: Envelope, arm: Arm) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, SealedEntry):
            score_raw, sham_raw, score, sham = envelope.open(entry.place, entry.envelope)
            values = [None if value != value else value for value in (score_raw, sham_raw, score, sham)]
            yield line([entry.place, arm, *values])
