"""`rtdecode keys`: who may connect to the daemon."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rtdecode.publish_settings import KEYS_FILE, ROLES


def register(subparsers: Any) -> None:
    """Add the command to the parser."""
    keys = subparsers.add_parser("keys", help="make, list and revoke the keys of clients")
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)

    new = actions.add_parser("new", help="give a client a key")
    new.add_argument("name", metavar="NAME", help="of the client, for example stimulus-pc")
    new.add_argument(
        "--role",
        choices=ROLES,
        required=True,
        help="observe: read the stream; experiment: announce trials as well; operate: everything",
    )
    new.add_argument("--out", type=Path, metavar="FILE", help="file to make for the client (default NAME.key)")
    new.set_defaults(handler=_new)

    listed = actions.add_parser("list", help="show the keys that hold, and those that were revoked")
    listed.set_defaults(handler=_list)

    revoke = actions.add_parser("revoke", help="let a key hold no longer; a daemon that runs cuts it off")
    revoke.add_argument("name", metavar="NAME", help="of the client")
    revoke.set_defaults(handler=_revoke)
    for parser in (new, listed, revoke):
        parser.add_argument(
            "--keys",
            type=Path,
            default=Path(KEYS_FILE),
            metavar="FILE",
            help=f"the daemon's file of keys, publish.keys in its settings (default {KEYS_FILE})",
        )


def _new(args: argparse.Namespace) -> int:
    from rtdecode.publish.access import new_key

    out = args.out or Path(f"{args.name}.key")
    new_key(args.keys, args.name, args.role, out)
    print(f"{out}: give it to {args.name} and to nobody else; {args.keys} stays with the daemon ([publish] keys)")
    return 0


def _list(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from rtdecode.publish.access import read_keys

    table = Table("name", "role", "made", "revoked", title=str(args.keys))
    for key in read_keys(args.keys).clients:
        table.add_row(key.name, key.role, key.made, key.revoked)
    Console().print(table)
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from rtdecode.publish.access import revoke

    revoke(args.keys, args.name)
    print(f"{args.keys}: {args.name} no longer holds")
    return 0
