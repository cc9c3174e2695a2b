"""How well the demo decodes: three simulated participants, one with shuffled labels, and a recorded one.

    python bench/demo.py [--quick] [--json FILE]

Each is a `rtdecode demo` of its own. `--quick` runs the recorded participant only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _report import print_table, write_json

SEEDS = (1, 2, 3)
KEPT = (
    "calibration_trials", "decoded_trials", "chance", "accuracy_final", "accuracy_interval", "permutation_p",
    "supported", "calibration", "identification", "latency_ms", "volumes", "faults", "elapsed_s",
)  # fmt: skip


def demo(*arguments: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = [sys.executable, "-m", "rtdecode", "demo", "--no-browser", "--speed", "max", "--port", "0"]
        command += ["--out", str(out / "demo"), "--json", str(out / "demo.json"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((out / "demo.json").read_text())
    return {name: summary[name] for name in KEPT if name in summary}


def row(name: str, figures: dict[str, Any]) -> list[str]:
    low, high = figures["accuracy_interval"]
    found = figures.get("identification", {})
    oracle = found.get("oracle", {})
    latency = figures["latency_ms"]
    return [
        name,
        f"{figures['decoded_trials']}",
        f"{figures['accuracy_final']:.1%} [{low:.0%}-{high:.0%}]",
        f"{figures['permutation_p']:.4f}",
        f"{figures['supported']['right']} of {figures['supported']['trials']}",
        f"{found['top1']:.1%} of {found['pool']}" if found else "",
        f"{found['percentile']:.1%}" if found else "",
        f"{found['permutation_p']:.4f}" if found else "",
        f"{oracle['top1']:.1%} / {oracle['percentile']:.1%}" if oracle else "",
        f"{latency['volume_p50']:.0f} / {latency['volume_p99']:.0f}",
        f"{latency['reconstruction_p50']:.0f} / {latency['reconstruction_p99']:.0f}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the recorded participant only")
    parser.add_argument("--json", type=Path, help="write the figures")
    args = parser.parse_args()
    shared = Path(os.environ.get("RTDECODE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    runs = {"recorded, runs 1-4 to 5-6": ("--data", str(shared / "data" / "task-haxby2001-sub001-runs1-6"))}
    if not args.quick:
        runs |= {f"simulated, seed {seed}": ("--seed", str(seed)) for seed in SEEDS}
        runs["simulated, labels shuffled"] = ("--seed", str(SEEDS[0]), "--shuffle-labels")
    figures = {name: demo(*arguments) for name, arguments in runs.items()}
    head = [
        "participant",
        "trials",
        "category (chance 12.5%)",
        "p",
        "where supported",
        "first",
        "percentile",
        "p",
        "oracle",
    ]
    head += ["volume ms p50/p99", "picture ms p50/p99"]
    print_table("rtdecode demo", head, [row(name, found) for name, found in figures.items()])
    if args.json:
        write_json(args.json, figures)
    whole = all(f["volumes"]["received"] == f["volumes"]["expected"] and not f["faults"] for f in figures.values())
    print("every volume received, no faults" if whole else "VOLUMES LOST OR FAULTS")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
