"""A long session through the real daemon: memory after each run, volumes lost, time per volume.

    PYTHONPATH=. python bench/soak.py [--quick] [--json FILE]

12 runs of 600 volumes (64 x 64 x 36) of Siemens mosaic with 100 trials each: the first calibrates, the others are
decoded to pictures. Daemon, decode worker, calibration and client are real processes and sockets; the scanner writes
the next volume when the one before has been published, so that nothing depends on the speed of the machine. Memory is
the resident set of the daemon and of its decode worker once a run and its pictures are out. `--quick` runs 4 runs of
60 small volumes and holds them to the loss of volumes alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _report import print_table, write_json
from _visit import Visit

from rtdecode import client as wire
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.visit import VisitPlan
from tests.system.line_harness import PROTOCOL
from tests.system.test_resume import Daemons

MOST_GROWTH = 0.05
SETTLED_AFTER = 2
SEED = 3


def resident_bytes(pid: int) -> int:
    """Return the resident set of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, from any of its threads."""
    return [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]


def soak(plan: VisitPlan, protocol: Protocol, n_responsive: int, scratch: Path) -> dict[str, Any]:
    daemon, worker = [], []

    def sample(daemons: Daemons) -> None:
        daemon.append(resident_bytes(daemons.pid))
        worker.append(max(resident_bytes(pid) for pid in children(daemons.pid)))
        print(f"run {len(daemon)}: {daemon[-1] / 2**20:.1f} MiB, worker {worker[-1] / 2**20:.1f} MiB", flush=True)

    visit = Visit(scratch, plan, protocol, n_responsive, ahead=0)
    visit.run(after_run=sample)
    volumes = visit.of(wire.Volume)
    expected = {(run, index) for run in range(1, plan.runs + 1) for index in range(plan.volumes_per_run)}
    totals = [message.stages["total"] for message in volumes]
    p50, p99, most = np.percentile(totals, [50, 99, 100])
    return {
        "runs": plan.runs,
        "volumes_per_run": plan.volumes_per_run,
        "shape": list(protocol.shape),
        "trials_per_run": plan.trials_per_run,
        "daemon_resident_bytes": daemon,
        "worker_resident_bytes": worker,
        "growth_after_run_2": daemon[-1] / daemon[SETTLED_AFTER - 1] - 1,
        "worker_growth_after_run_2": worker[-1] / worker[SETTLED_AFTER - 1] - 1,
        "volumes_lost": len(expected - {(message.run, message.volume) for message in volumes}),
        "volumes_repeated": len(volumes) - len({(message.run, message.volume) for message in volumes}),
        "faults": [message.reason for message in visit.of(wire.Fault)],
        "volume_ms": {"p50": p50, "p99": p99, "max": most},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small volumes")
    parser.add_argument("--json", type=Path, help="write the figures")
    args = parser.parse_args()
    runs, volumes, trials = (4, 60, 16) if args.quick else (12, 600, 100)
    plan = VisitPlan(
        seed=SEED, calibration_runs=1, decoding_runs=runs - 1, trials_per_run=trials, volumes_per_run=volumes
    )
    with tempfile.TemporaryDirectory() as scratch:
        protocol, n_responsive = (PROTOCOL, 60) if args.quick else (Protocol(), 1000)
        figures = soak(plan, protocol, n_responsive, Path(scratch))
    rows = [
        ("resident after run 2", f"{figures['daemon_resident_bytes'][SETTLED_AFTER - 1] / 2**20:.1f} MiB"),
        (f"resident after run {runs}", f"{figures['daemon_resident_bytes'][-1] / 2**20:.1f} MiB"),
        ("growth", f"{100 * figures['growth_after_run_2']:.1f} %"),
        ("volumes lost", figures["volumes_lost"]),
        ("volumes twice", figures["volumes_repeated"]),
        ("faults", len(figures["faults"])),
        *((f"ms per volume, {name}", f"{value:.1f}") for name, value in figures["volume_ms"].items()),
    ]
    print_table(f"{runs} runs of {volumes} volumes", ["", ""], rows)
    if args.json:
        write_json(args.json, figures)
    print(*figures["faults"], sep="\n")  # a part that broke loses a volume or a picture; that betas drift may be said
    lost = figures["volumes_lost"] or figures["volumes_repeated"]
    return int(bool(lost) or (not args.quick and figures["growth_after_run_2"] >= MOST_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
