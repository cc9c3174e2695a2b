"""The commands of the runtime: `run`, `check`, `display`; the others have their own modules."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdecode import client

if TYPE_CHECKING:
    from rtdecode.publish.display.guard import FarDoor
    from rtdecode.session.past import Past

_log = logging.getLogger(__name__)
Subparsers = Any  # argparse keeps the type of its sub-parsers private


def register(subparsers: Subparsers) -> None:
    """Add the commands to the parser."""
    from rtdecode.acquire import cli as inspect
    from rtdecode.demo import cli as demo
    from rtdecode.evaluate import cli as evaluate
    from rtdecode.process import cli as process
    from rtdecode.protocols import cli as protocols
    from rtdecode.publish import cli as keys
    from rtdecode.session import recovery
    from rtdecode.simulate import cli as simulate

    run = subparsers.add_parser("run", help="decode one session: start this before the participant goes in")
    run.add_argument("settings", type=Path, metavar="SETTINGS", help="TOML file")
    run.add_argument("--resume", action="store_true", help="go on with this session if it was interrupted")
    run.add_argument(
        "--reopen", action="store_true", help="with --resume: go on also with a session that was ended in order"
    )
    run.add_argument(
        "--leave-out-unreadable",
        action="store_true",
        help="with --resume: let kept volumes that can no longer be read be missing",
    )
    run.set_defaults(handler=_run)

    check = subparsers.add_parser("check", help="tell before the scan what would fail in it")
    what = check.add_mutually_exclusive_group(required=True)
    what.add_argument("settings", type=Path, nargs="?", metavar="SETTINGS", help="TOML file")
    what.add_argument("--example", action="store_true", help="print a settings file to start from")
    what.add_argument(
        "--client", action="store_true", help="look from a client's machine whether the daemon can be reached"
    )
    check.add_argument("--stream", default=client.STREAM, help=f"with --client (default {client.STREAM})")
    check.add_argument("--requests", default=client.REQUESTS, help=f"with --client (default {client.REQUESTS})")
    check.add_argument("--key", metavar="FILE", help="with --client: the client's key")
    check.set_defaults(handler=_check)

    display = subparsers.add_parser("display", help="serve the page that shows the session")
    display.add_argument(
        "settings",
        type=Path,
        nargs="?",
        metavar="SETTINGS",
        help="TOML file of the session: its addresses and pictures",
    )
    display.add_argument("--stream", help=f"address of the daemon's stream (default {client.STREAM})")
    display.add_argument("--requests", help=f"address the daemon takes requests at (default {client.REQUESTS})")
    display.add_argument("--key", metavar="FILE", help="key of `rtdecode keys new`, where the daemon asks for keys")
    display.add_argument("--stimuli", type=Path, help="folder of the shown pictures, <stimulus>.png")
    display.add_argument("--port", type=int, default=8765, help="port of the page; 0 takes a free one")
    display.add_argument(
        "--host",
        metavar="ADDRESS",
        help="serve other machines too, at this IPv4 address of this one; wants a certificate",
    )
    display.add_argument("--certificate", type=Path, metavar="PEM", help="TLS certificate of the page, with --host")
    display.add_argument("--certificate-key", type=Path, metavar="PEM", help="its key")
    display.add_argument(
        "--name", action="append", default=[], help="name or address that browsers use for this machine, with --host"
    )
    display.add_argument("--no-browser", action="store_true", help="do not open a browser")
    display.set_defaults(handler=_display)

    gateway = subparsers.add_parser(
        "gateway", help="serve the stream to programs of this machine over HTTP, WebSocket and lines of text"
    )
    gateway.add_argument(
        "settings", type=Path, nargs="?", metavar="SETTINGS", help="TOML file: addresses of the daemon"
    )
    gateway.add_argument("--stream", help=f"address of the daemon's stream (default {client.STREAM})")
    gateway.add_argument("--requests", help=f"address the daemon takes requests at (default {client.REQUESTS})")
    gateway.add_argument("--key", metavar="FILE", help="key of `rtdecode keys new`, where the daemon asks for keys")
    gateway.add_argument("--port", type=int, default=8766, help="port of HTTP and WebSocket; 0 takes a free one")
    gateway.add_argument("--lines", type=int, default=8767, help="port of lines of text; 0 takes a free one")
    gateway.add_argument("--pages", type=Path, metavar="DIR", help="folder of an experiment's pages, served at /")
    gateway.set_defaults(handler=_gateway)

    lsl = subparsers.add_parser("lsl", help="send markers and scores to the Lab Streaming Layer")
    lsl.add_argument("settings", type=Path, nargs="?", metavar="SETTINGS", help="TOML file: addresses of the daemon")
    lsl.add_argument("--stream", help=f"address of the daemon's stream (default {client.STREAM})")
    lsl.add_argument("--requests", help=f"address the daemon takes requests at (default {client.REQUESTS})")
    lsl.add_argument("--key", metavar="FILE", help="key of `rtdecode keys new`, where the daemon asks for keys")
    lsl.add_argument("--name", default="rtdecode", help="beginning of the outlets' names (default rtdecode)")
    lsl.set_defaults(handler=_lsl)

    demo.register(subparsers)
    process.register(subparsers)
    simulate.register(subparsers)
    inspect.register(subparsers)
    keys.register(subparsers)
    evaluate.register(subparsers)
    recovery.register(subparsers)
    protocols.register(subparsers)


def _run(args: argparse.Namespace) -> int:
    from rtdecode.acquire.watcher import FolderWatcher
    from rtdecode.check import missing
    from rtdecode.clock import SystemClock
    from rtdecode.decode.runtime.backends import choose
    from rtdecode.decode.worker import WorkerService
    from rtdecode.errors import SettingsError
    from rtdecode.estimate.calibrated import calibration_of
    from rtdecode.packs import open_pack
    from rtdecode.protocol_file import read_protocol
    from rtdecode.publish.access import Access
    from rtdecode.publish.server import Server
    from rtdecode.session.blind import open_blind
    from rtdecode.session.daemon import Daemon
    from rtdecode.session.films import open_films
    from rtdecode.session.past import Past, check_unchanged
    from rtdecode.session.recording import Recording, session_folder
    from rtdecode.settings import load_settings

    settings = load_settings(args.settings)
    absent = missing(settings)
    if absent:
        raise SettingsError([f"$.{name}: {problem}" for name, problem in absent.items()])
    clock = SystemClock()
    pack = open_pack(settings.decode.pack)
    backend = choose(settings.decode.backend, pack)
    _log.info("pack %s is run by %s: %s", pack.name, backend.name, backend.reason)
    calibrated = calibration_of(settings, pack)
    protocol = None if settings.session.protocol is None else read_protocol(settings.session.protocol)
    films = open_films(settings.film, None if protocol is None else protocol.film)
    open_blind(settings.blinding, protocol, settings.session.participant, "", lambda *_: None)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = session_folder(settings.session)
    past = None
    if args.resume and folder.exists():
        check_unchanged(settings, folder, args.settings.parent)
        past = Past(folder, leave_out=args.leave_out_unreadable)
        if not args.reopen and _ended(past):
            raise SettingsError(
                [
                    f"{folder}: this session was ended in order: choose another [session] session for a new one, or go "
                    "on with it by --resume --reopen"
                ]
            )
    publish = settings.publish
    server = Server(publish.stream, publish.requests, None if publish.keys is None else Access(publish.keys))
    try:
        text = args.settings.read_text(encoding="utf-8")
        decode = replace(settings.decode, pack=str(pack.folder), backend=backend.name)
        worker = WorkerService(decode, seed=settings.session.seed)
        with contextlib.closing(worker) as decoder:
            if settings.decode.bundle is not None:
                decoder.load(settings.decode.bundle)  # one that cannot be used is refused before a folder is made
            planned = None if protocol is None else protocol.text
            with (
                contextlib.closing(
                    Recording(settings.session, text, clock, resume=past is not None, protocol=planned)
                ) as recording,
                FolderWatcher(settings.scanner, recording.session, clock, known=past.runs() if past else ()) as source,
            ):
                daemon = Daemon(
                    settings,
                    source,
                    decoder,
                    pack,
                    recording,
                    server,
                    clock,
                    calibrated=calibrated,
                    films=films,
                    protocol=protocol,
                )
                server.start(daemon.desk.answer, recording.sync if publish.send == "after_sync" else lambda: True)
                if daemon.begin(past, stop):
                    print(f"rtdecode run: stream {server.stream}, requests {server.requests}", flush=True)
                    daemon.run(stop)
                else:
                    print("rtdecode run: ended before the session was resumed; --resume goes on with it", flush=True)
    finally:
        server.close()
    return 0


def _ended(past: Past) -> bool:
    """Whether the last that a session told of itself is that it ended."""
    told = [payload for _, topic, payload in past.outputs() if topic == b"session"]
    last = client.unpack(b"session", told[-1]) if told else None
    return isinstance(last, client.Session) and last.state == "ended"


def _check(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from rtdecode.check import EXAMPLE, check, check_client
    from rtdecode.clock import SystemClock
    from rtdecode.settings import load_settings

    if args.example:
        print(EXAMPLE, end="")
        return 0
    if args.client:
        findings = check_client(args.stream, args.requests, args.key)
    else:
        findings = check(load_settings(args.settings), SystemClock())
    table = Table("", "what", "found", "to do", title=f"rtdecode check {args.settings or '--client'}")
    for finding in findings:
        mark = "[red]FAIL[/]" if finding.problem else "[green]ok[/]"
        table.add_row(mark, finding.subject, finding.detail, finding.problem)
    Console().print(table)
    failed = sum(bool(f.problem) for f in findings)
    print(("ready" if args.client else "ready to scan") if not failed else f"{failed} of {len(findings)} would fail")
    return 2 if failed else 0


def _display(args: argparse.Namespace) -> int:
    from rtdecode.publish.display.web import open_page, serve
    from rtdecode.settings import load_settings

    settings = None if args.settings is None else load_settings(args.settings)
    stream, requests, stimuli = (
        (client.STREAM, client.REQUESTS, None)
        if settings is None
        else (*settings.publish.nearby(), settings.decode.stimuli)
    )
    return serve(
        args.stream or stream,
        args.requests or requests,
        key=args.key,
        port=args.port,
        stimuli=args.stimuli or stimuli,
        door=_far_door(args),
        ready=None if args.no_browser else open_page,
    )


def _far_door(args: argparse.Namespace) -> FarDoor | None:
    from rtdecode.errors import SettingsError
    from rtdecode.publish.display.guard import FarDoor

    given = {"--certificate": args.certificate, "--certificate-key": args.certificate_key, "--name": args.name or None}
    if args.host is None:
        alone = [name for name, value in given.items() if value is not None]
        if alone:
            raise SettingsError([f"{', '.join(alone)}: expected --host beside it, to serve other machines"])
        return None
    absent = [name for name, value in given.items() if value is None]
    if absent:
        raise SettingsError(
            [f"--host {args.host} serves other machines: expected {', '.join(absent)} beside it; nobody may read along"]
        )
    return FarDoor(host=args.host, certificate=args.certificate, secret=args.certificate_key, names=tuple(args.name))


def _addresses(args: argparse.Namespace) -> tuple[str, str]:
    from rtdecode.settings import load_settings

    near = (client.STREAM, client.REQUESTS) if args.settings is None else load_settings(args.settings).publish.nearby()
    return args.stream or near[0], args.requests or near[1]


def _gateway(args: argparse.Namespace) -> int:
    from rtdecode.publish.gateway.web import serve

    return serve(_addresses(args), key=args.key, port=args.port, lines=args.lines, pages=args.pages)


def _lsl(args: argparse.Namespace) -> int:
    from rtdecode.publish.lsl import TOPICS, follow, open_outlets

    outlets = open_outlets(args.name)
    with client.Client(*_addresses(args), topics=TOPICS, key=args.key) as connection:
        print(f"rtdecode lsl: outlets {args.name}-markers and {args.name}-scores", flush=True)
        follow(connection, outlets)
    return 0
