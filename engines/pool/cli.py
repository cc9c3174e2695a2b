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
    search.add_argument("pool", help="folder of the pool, or the address of a knn-service of clip-retrieval")
    search.add_argument("queries", type=Path, help="file of rtdecode engines embed")
    search.add_argument("-k", type=int, default=5, help="pictures to name")
    search.add_argument("--index", help="with an address: which of its indexes, the first by default")
    search.add_argument(
        "--rerank",
        type=Path,
        nargs=2,
        metavar=("POOL_TOKENS", "QUERY_TOKENS"),
        help="files of hidden tokens of the pool's pictures and of the queries, by the same names: 16 candidates of a "
        "query are told in the order of these",
    )
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
    from rtdecode.decode.score.remote_pool import RemotePool
    from rtdecode.decode.score.reranking import CANDIDATES, reranked

    remote = "://" in args.pool
    pool = RemotePool(args.pool, index=args.index) if remote else DiskPool(Path(args.pool))
    queries = open_source(args.queries)
    tokens = [open_source(path).by_name() for path in args.rerank or ()]
    for i, name in enumerate(queries.names):
        near = pool.nearest(queries.rows(i, i + 1), max(args.k, CANDIDATES) if tokens else args.k)
        if tokens and name in tokens[1]:
            near = reranked(near, tokens[1][name], tokens[0])
        print(f"{name}: {', '.join(f'{other} {cosine:.3f}' for other, cosine in near[: args.k])}")
    return 0
