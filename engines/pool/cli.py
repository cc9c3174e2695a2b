"""`engines pool`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; each of its own sets ``handler``."""
    pool = commands.add_parser("pool", help="an index on the disk of more pictures than memory holds")
    what = pool.add_subparsers(required=True, metavar="WHAT")
    for name, told in (
        ("build", "train an index on embeddings and add them; again: go on where it was interrupted"),
        ("add", "add embeddings to a pool that is there"),
    ):
        parser = what.add_parser(name, help=told)
        parser.add_argument("pool", type=Path, help="folder of the pool")
        parser.add_argument("embeddings", type=Path, nargs="+", help="files of rtdecode engines embed")
        parser.set_defaults(handler=_build if name == "build" else _add)
    search = what.add_parser("search", help="name the pictures of a pool that are most like others")
    search.add_argument("pool", type=Path, help="folder of the pool")
    search.add_argument("queries", type=Path, help="file of rtdecode engines embed")
    search.add_argument("-k", type=int, default=5, help="pictures to name")
    search.set_defaults(handler=_search)


def _build(args: argparse.Namespace) -> int:
    from engines.pool.disk_index import build_pool

    with Progress() as bar:
        task = bar.add_task("indexing", total=None)
        said = build_pool(
            args.embeddings, args.pool, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(f"{args.pool}: {sum(shard.rows for shard in said.shards):,} pictures in {len(said.shards)} shards")
    return 0


def _add(args: argparse.Namespace) -> int:
    from rtdecode.decode.score.disk_pool import read_pool

    read_pool(args.pool)  # which is to be there
    return _build(args)


def _search(args: argparse.Namespace) -> int:
    from engines.pool.disk_index import open_source
    from rtdecode.decode.score.disk_pool import DiskPool

    pool, queries = DiskPool(args.pool), open_source(args.queries)
    for i, name in enumerate(queries.names):
        found = ", ".join(f"{other} {cosine:.3f}" for other, cosine in pool.nearest(queries.rows(i, i + 1), args.k))
        print(f"{name}: {found}")
    return 0
