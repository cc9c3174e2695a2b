"""`rtdecode session recover`: what can be saved of a session whose journals were damaged on the disk."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rtdecode.client import unpack
from rtdecode.clock import SystemClock
from rtdecode.errors import JournalError
from rtdecode.session.entries import SessionEntry, read_inputs, read_outputs
from rtdecode.session.journal import Journal, Recovered, recover
from rtdecode.session.lock import FolderLock

JOURNALS = ("inputs", "outputs")


def register(subparsers: Any) -> None:
    """Add ``session`` with what can be done to a session folder; each sets ``handler``."""
    session = subparsers.add_parser("session", help="look after a session folder")
    commands = session.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = commands.add_parser(
        "recover", help="rewrite damaged journals with their whole records; the damaged files stay beside them"
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="session folder (sub-..._ses-...)")
    parser.set_defaults(handler=_recover)


def recover_session(folder: Path) -> dict[str, Recovered]:
    """Recover the journals of a session folder.

    Parameters
    ----------
    folder : Path
        Nobody may be recording in it.

    Returns
    -------
    dict of str to Recovered
        By journal.

    Raises
    ------
    JournalError
        There are none, they cannot be recovered, or the session is being recorded.
    """
    journals = folder / "journal"
    if not journals.is_dir():
        raise JournalError(f"{folder}: expected a session folder, found no journal in it")
    clock = SystemClock()
    lock = FolderLock(journals / "lock", clock)
    try:
        found = {name: recover(journals / f"{name}.journal") for name in JOURNALS}
        inputs = journals / "inputs.journal"
        if not any(isinstance(entry, SessionEntry) for entry in read_inputs(inputs)):
            _restore_identifier(inputs, _sessions(journals / "outputs.journal"), clock)
    finally:
        lock.close()
    return found


def _sessions(outputs: Path) -> Iterator[str]:
    return (unpack(entry.topic.encode(), entry.payload).session for _, entry in read_outputs(outputs))


def _restore_identifier(inputs: Path, sessions: Iterator[str], clock: SystemClock) -> None:
    identifier = next(sessions, None)
    if identifier is None:
        raise JournalError(f"{inputs}: the session's identifier is lost, and no message tells it")
    journal = Journal(inputs, clock, resume=True)
    journal.append("session", session=identifier)
    journal.close()


def _recover(args: argparse.Namespace) -> int:
    found = recover_session(args.folder)
    for name, journal in found.items():
        lost = sum(end - start for start, end in journal.damaged)
        print(f"{name}.journal: {journal.records} whole records, {len(journal.damaged)} damaged places, {lost} bytes")
        for start, end in journal.damaged:
            print(f"  bytes {start} to {end} (kept in {name}.journal.damaged)")
    if any(journal.damaged for journal in found.values()):
        print("go on with it by rtdecode run SETTINGS --resume: a volume whose record is lost is named and missing")
    else:
        print("nothing is damaged")
    return 0
