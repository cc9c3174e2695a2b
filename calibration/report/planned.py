"""What the protocol of a session, and its seal, tell of the CRED-nf checklist."""

from __future__ import annotations

from pathlib import Path

from rtdecode.protocol_file import Protocol, read_protocol
from rtdecode.session.entries import BlindedEntry, UnblindedEntry, read_inputs
from rtdecode.session.recording import PROTOCOL


def planned(folder: Path) -> dict[str, str]:
    """Return entries of the checklist by their number; a question without an answer is told as it was asked.

    Parameters
    ----------
    folder : Path
        Session folder.

    Raises
    ------
    SettingsError, JournalError
        The protocol that was kept, or the journal, cannot be read.
    """
    path = folder / PROTOCOL
    if not path.is_file():
        return {}
    protocol = read_protocol(path)
    asked: dict[str, list[str]] = {}
    for question in protocol.questions:
        asked.setdefault(question.entry, []).append(f"{question.ask} {question.answer or 'not stated'}")
    return {entry: "; ".join(told) for entry, told in asked.items()} | _blinding(folder, protocol)


def _blinding(folder: Path, protocol: Protocol) -> dict[str, str]:
    if protocol.sham is None:
        return {}
    entries = list(read_inputs(folder / "journal" / "inputs.journal"))
    if not any(isinstance(entry, BlindedEntry) for entry in entries):
        return {"2a": f"the protocol has a sham ({protocol.sham.kind}); this session was open"}
    opened = [entry.reason for entry in entries if isinstance(entry, UnblindedEntry)]
    told = f"unblinded: {'; '.join(opened)}" if opened else "the seal has not been opened"
    return {
        "2a": f"sham: {protocol.sham.kind.replace('_', ' ')}, protocol {protocol.name} {protocol.version}",
        "2b": f"a sealed allocation decided what was shown; participant and operator could not tell; {told}",
    }
