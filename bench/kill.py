"""Kill the daemon by SIGKILL at seeded points of small visits, resume, and compare with a visit left alone.

    PYTHONPATH=. python bench/kill.py [--points 50] [--json FILE]

Daemon, calibration, scanner and client are real processes and sockets; the scanner keeps step with the daemon. Equal
means: the same volumes, betas, runs and skipped files message by message, the same final embedding, score, caption and
picture of every trial, no gap and no repetition in any sequence number, and the same tables.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _report import print_table, write_json
from _visit import Visit

from rtdecode import client as wire
from tests.system.line_harness import PLAN, PROTOCOL
from tests.system.test_resume import DECODED, EXACT, Daemons, content, finals, published, tables

KILLS_PER_VISIT = 5


def visit(out: Path, kills: dict[tuple[int, int], float]) -> Path:
    """Scan, calibrate and decode; kill the daemon so many seconds after each of these (run, volume)."""

    def after(daemons: Daemons, client: wire.Client, run: int, volume: int) -> None:
        if (run, volume) in kills:
            time.sleep(kills[run, volume])
            daemons.kill_and_resume(client)

    out.mkdir()
    one = Visit(out, PLAN, PROTOCOL, n_responsive=60, ahead=2)
    one.run(after)
    return one.folder


def differences(folder: Path, reference: Path) -> list[str]:
    found = [t for t in EXACT if content(published(folder, t)) != content(published(reference, t))]
    for topic in (*EXACT, *DECODED):
        if [m.seq for m in published(folder, topic)] != list(range(len(published(folder, topic)))):
            found.append(f"{topic} numbers")
        if len({m.session for m in published(folder, topic)}) > 1:
            found.append(f"{topic} sessions")
    found += [t for t in DECODED if finals(published(folder, t)) != finals(published(reference, t))]
    return found + [name for name, lines in tables(reference).items() if tables(folder).get(name) != lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures")
    args = parser.parse_args()
    rng = random.Random(0)
    every = [(run, volume) for run in range(1, PLAN.runs + 1) for volume in range(PLAN.volumes_per_run)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        reference = visit(root / "reference", {})
        while (done := sum(len(row["killed_after"]) for row in rows)) < args.points:
            points = sorted(rng.sample(every, min(KILLS_PER_VISIT, args.points - done)))
            folder = visit(root / f"visit-{len(rows)}", {point: rng.uniform(0, 0.06) for point in points})
            rows.append({"killed_after": points, "differences": differences(folder, reference)})
            print(f"{done + len(points)} of {args.points}: {rows[-1]['differences'] or 'equal'}", flush=True)
    table = [(str(row["killed_after"]), ", ".join(row["differences"]) or "none") for row in rows]
    print_table("Killed and resumed", ["after (run, volume)", "differences"], table)
    if args.json:
        write_json(args.json, {"visits": rows})
    return int(any(row["differences"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
