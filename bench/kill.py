"""Kill the daemon by SIGKILL at seeded points of small visits, resume, and compare with a visit left alone.

    python bench/kill.py [--points 50] [--json FILE]

Daemon, calibration, scanner and client are real processes and sockets; the scanner keeps step with the daemon. Equal
means: the same volumes, betas, runs and skipped files message by message, the same final embedding, score, caption and
picture of every trial, no gap and no repetition in any sequence number, and the same tables.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
from _report import print_table, write_json

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.demo.processes import free_port
from rtdecode.simulate.participant import ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.system.line_harness import PLAN, PROTOCOL
from tests.system.test_resume import DECODED, EXACT, Daemons, content, finals, published, tables

KILLS_PER_VISIT = 5
SILENCE_S = 120.0


class Visit:
    """One visit, with kills after some volumes."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "sub-sim_ses-01"
        (out / "export").mkdir()
        PLAN.write_stimuli(out / "stimuli")
        self._addresses = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
        self._settings = out / "settings.toml"
        raw = {
            "session": {"participant": "sim", "output": ".", "seed": PLAN.seed},
            "scanner": {"export_dir": "export"},
            "decode": {"stimuli": "stimuli"},
            "calibration": {"runs": PLAN.calibration_runs},
            "publish": dict(zip(("stream", "requests"), self._addresses, strict=True)),
        }
        self._settings.write_text(tomli_w.dumps(raw))
        participant = make_participant(PLAN.seed, PROTOCOL, ResponseParameters(n_responsive=60))
        self._scanner = Scanner(PLAN, participant, out / "export", SystemClock())
        self._seen: list[wire.Message] = []

    def run(self, kills: dict[tuple[int, int], float]) -> None:
        """Scan, calibrate and decode; kill the daemon so many seconds after each of these (run, volume)."""
        topics = ["session", "run", "volume", "reconstruction"]
        with Daemons(self._settings) as daemons, wire.Client(*self._addresses, topics=topics) as client:
            daemons.await_answer(client)
            command = [sys.executable, "-m", "rtdecode", "calibrate", str(self._settings)]
            calibration = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            written = 0

            def hold(run: int) -> None:
                self._until(client, lambda: len(self._of(wire.Run, state="ended")) >= run - 1)
                if run == PLAN.calibration_runs + 1:
                    self._until(client, lambda: bool(self._of(wire.Session, mode="decode")))

            def after(run: int, volume: int) -> None:
                nonlocal written
                written += 1
                if (run, volume) in kills:
                    time.sleep(kills[run, volume])
                    daemons.kill_and_resume(client)
                self._until(client, lambda: len(self._of(wire.Volume)) > written - 3)

            self._scanner.play(lambda message: client.event(**message), hold, after)
            decoded = PLAN.decoding_runs * PLAN.trials_per_run
            self._until(client, lambda: len(self._of(wire.Reconstruction, final=True)) >= decoded)
            calibration.wait()

    def _of(self, kind: type[wire.Message], **fields: object) -> list[wire.Message]:
        return [m for m in self._seen if type(m) is kind and all(getattr(m, k) == v for k, v in fields.items())]

    def _until(self, client: wire.Client, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SILENCE_S
        while not reached():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing came for {SILENCE_S:.0f} s")
            message = client.receive(0.2)
            if message is None:
                client.catch_up()
            else:
                self._seen.append(message)


def differences(folder: Path, reference: Path) -> list[str]:
    found = [t for t in EXACT if content(published(folder, t)) != content(published(reference, t))]
    for topic in (*EXACT, *DECODED):
        if [m.seq for m in published(folder, topic)] != list(range(len(published(folder, topic)))):
            found.append(f"{topic} numbers")
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
        (root / "reference").mkdir()
        reference = Visit(root / "reference")
        reference.run({})
        while (done := sum(len(row["killed_after"]) for row in rows)) < args.points:
            points = sorted(rng.sample(every, min(KILLS_PER_VISIT, args.points - done)))
            out = root / f"visit-{len(rows)}"
            out.mkdir()
            visit = Visit(out)
            visit.run({point: rng.uniform(0, 0.06) for point in points})
            rows.append({"killed_after": points, "differences": differences(visit.folder, reference.folder)})
            print(f"{done + len(points)} of {args.points}: {rows[-1]['differences'] or 'equal'}", flush=True)
    table = [(str(row["killed_after"]), ", ".join(row["differences"]) or "none") for row in rows]
    print_table("Killed and resumed", ["after (run, volume)", "differences"], table)
    if args.json:
        write_json(args.json, {"visits": rows})
    return int(any(row["differences"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
