"""`rtdecode protocol`: check, show, events, example; allocate and unblind."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent / "examples"


def register(subparsers: Any) -> None:
    """Add ``protocol`` and its commands; each sets ``handler``."""
    protocol = subparsers.add_parser("protocol", help="look after the protocol of an experiment, and after blinding")
    commands = protocol.add_subparsers(title="commands", metavar="COMMAND", required=True)

    check = commands.add_parser("check", help="tell what is wrong with a protocol, and what a report will lack")
    check.add_argument("protocol", type=Path, metavar="PROTOCOL", help="TOML file")
    check.set_defaults(handler=_check)

    show = commands.add_parser("show", help="show the design run by run")
    show.add_argument("protocol", type=Path, metavar="PROTOCOL", help="TOML file")
    show.add_argument("--participant", default="01", help="BIDS label: orders and pauses are drawn for each")
    show.add_argument("--figure", type=Path, metavar="FILE", help="draw it as well (PNG, SVG or PDF)")
    show.set_defaults(handler=_show)

    events = commands.add_parser("events", help="write BIDS events and a conditions file for PsychoPy")
    events.add_argument("protocol", type=Path, metavar="PROTOCOL", help="TOML file")
    events.add_argument("--participant", required=True, help="BIDS label")
    events.add_argument("--session", help="BIDS label")
    events.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for them; made if absent")
    events.set_defaults(handler=_events)

    example = commands.add_parser("example", help="print a protocol to start from")
    example.add_argument("name", choices=sorted(path.stem for path in EXAMPLES.glob("*.toml")), help="which one")
    example.set_defaults(handler=_example)

    allocate = commands.add_parser("allocate", help="draw who is shown the score and who a sham, and seal it")
    allocate.add_argument("protocol", type=Path, metavar="PROTOCOL", help="TOML file with a section [sham]")
    allocate.add_argument("--participants", nargs="+", required=True, metavar="LABEL", help="in their order")
    allocate.add_argument("--out", type=Path, required=True, metavar="FILE", help="the allocation: anybody may hold it")
    allocate.add_argument("--key", type=Path, required=True, metavar="FILE", help="its key: for a third person")
    allocate.add_argument("--block", type=int, default=4, help="arms are balanced among so many participants")
    allocate.set_defaults(handler=_allocate)

    unblind = commands.add_parser("unblind", help="open the seal of a recorded session; its journal tells of it")
    unblind.add_argument("session", type=Path, metavar="SESSION", help="session folder")
    unblind.add_argument("--key", type=Path, required=True, metavar="FILE", help="key of the allocation")
    unblind.add_argument("--reason", required=True, help="why; kept in the journal")
    unblind.set_defaults(handler=_unblind)


def _check(args: argparse.Namespace) -> int:
    from rtdecode.protocol_file import ASKED, read_protocol

    protocol = read_protocol(args.protocol)
    purposes = Counter(run.purpose for run in protocol.runs)
    runs = ", ".join(f"{count} {purpose}" for purpose, count in purposes.items())
    print(f"{protocol.name} {protocol.version} [{protocol.hash}]: {len(protocol.runs)} runs ({runs})")
    told = {question.entry for question in protocol.questions}
    missing = [entry for entry in ASKED if entry not in told]
    if missing and protocol.feedback.score != "none":
        print(f"CRED-nf entries that no question asks for, 'not stated' in a report: {', '.join(missing)}")
    if protocol.sham is None and protocol.feedback.score != "none":
        print("no [sham]: sessions of this protocol cannot be blinded")
    return 0


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from rtdecode.protocol_file import read_protocol
    from rtdecode.protocols.design import lay_out
    from rtdecode.protocols.drawing import draw

    protocol = read_protocol(args.protocol)
    runs = lay_out(protocol, args.participant)
    table = Table("run", "name", "purpose", "volumes", "minutes", "rows", "feedback", title=protocol.name)
    for run in runs:
        rows = Counter(row.condition for row in run.rows)
        feedback = ", ".join(dict.fromkeys(row.feedback for row in run.rows if row.feedback != "none")) or "-"
        minutes = run.volumes * protocol.t_r_s / 60
        shown = ", ".join(f"{count} {name}" for name, count in rows.items())
        table.add_row(
            str(run.run), run.plan.name, run.plan.purpose, str(run.volumes), f"{minutes:.1f}", shown, feedback
        )
    Console().print(table)
    total = sum(run.volumes for run in runs) * protocol.t_r_s / 60
    print(f"{protocol.version} [{protocol.hash}], {total:.0f} minutes of scanning; score {protocol.feedback.score}")
    for question in protocol.questions:
        print(f"{question.entry}: {question.ask} {question.answer or '(to be asked)'}")
    if args.figure is not None:
        draw(protocol, runs, args.figure)
    return 0


def _events(args: argparse.Namespace) -> int:
    from rtdecode.protocol_file import read_protocol
    from rtdecode.protocols.design import lay_out
    from rtdecode.protocols.tables import write_conditions, write_events

    protocol = read_protocol(args.protocol)
    runs = lay_out(protocol, args.participant)
    entities = {"sub": args.participant, "task": protocol.task}
    if args.session is not None:
        entities["ses"] = args.session
    for path in write_events(runs, args.out, entities):
        print(path)
    conditions = args.out / f"sub-{args.participant}_task-{protocol.task}_conditions.csv"
    write_conditions(runs, conditions)
    print(conditions)
    return 0


def _example(args: argparse.Namespace) -> int:
    print((EXAMPLES / f"{args.name}.toml").read_text(encoding="utf-8"), end="")
    return 0


def _allocate(args: argparse.Namespace) -> int:
    from rtdecode.blinding.allocation import allocate, new_key, write_seals
    from rtdecode.errors import SettingsError
    from rtdecode.protocol_file import read_protocol

    protocol = read_protocol(args.protocol)
    if protocol.sham is None:
        raise SettingsError([f"{args.protocol}: expected a section [sham], got none: there is nothing to allocate"])
    if args.out.exists():
        raise SettingsError([f"{args.out}: exists already: an allocation is drawn once"])
    key = new_key(args.key)
    write_seals(args.out, allocate(protocol.hash, args.participants, key, block=args.block))
    print(f"{len(args.participants)} participants sealed in {args.out}")
    print(f"give {args.key} to a third person: who has it can tell the arms, and without it nobody can, ever")
    return 0


def _unblind(args: argparse.Namespace) -> int:
    from rtdecode.blinding.allocation import read_key
    from rtdecode.clock import SystemClock
    from rtdecode.protocols.unblinding import TABLE, unblind

    arm = unblind(args.session, read_key(args.key), args.reason, SystemClock())
    print(f"{args.session.name}: {arm}; scores and shams are in journal/{TABLE}")
    return 0
