"""Whether pictures that come ten times a second make PsychoPy drop frames.

PsychoPy itself, in an environment of its own, draws on an Xvfb screen with software GL. For two seconds pictures of 100
kB come, for two none do, by turns, so that both meet the same machine. A frame that takes over 1.5 sixtieths of a
second counts as dropped.

    RTDECODE_PSYCHOPY=PYTHON python bench/psychopy_frames.py [--seconds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import print_table, write_json
from PIL import Image

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from rtdecode.session.recording import Recording
from rtdecode.settings import SessionSettings
from rtdecode.statistics import wilson_interval

PERIOD_S, TURN_S, DROPPED_MS = 0.1, 2.0, 1.5e3 / 60


def picture() -> bytes:
    """Make a JPEG of about 100 kB."""
    rng, out = np.random.default_rng(0), io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8))
    coarse.resize((512, 512), Image.Resampling.BILINEAR).save(out, "JPEG", quality=93)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    python = os.environ.get("RTDECODE_PSYCHOPY")
    if not python or shutil.which("xvfb-run") is None:
        raise SystemExit("needs xvfb-run, and RTDECODE_PSYCHOPY: the Python of an environment with PsychoPy")
    image = picture()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(wire.__file__, folder / "client.py")
        clock = SystemClock()
        recording = Recording(SessionSettings(participant="frames", output=folder / "sessions"), "", clock)
        server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
        out = Publisher(recording.session, clock, server, recording)
        server.start(lambda _: {})
        command = ["xvfb-run", "-a", "-s", "-screen 0 1280x800x24", python]
        command += [str(Path(__file__).with_name("_psychopy_frames.py")), server.stream, server.requests]
        given = {**os.environ, "PYTHONPATH": str(folder), "LIBGL_ALWAYS_SOFTWARE": "1"}
        drawing = subprocess.Popen([*command, str(args.seconds)], env=given, stdout=subprocess.PIPE, text=True)
        began, number = time.monotonic(), 0
        while drawing.poll() is None:
            if (time.monotonic() - began) % (2 * TURN_S) < TURN_S:
                out.publish(wire.Reconstruction(volume=number, image=image, format="jpeg", width=512, height=512))
                number += 1
            else:
                out.publish(wire.Heartbeat())
            time.sleep(PERIOD_S)
        assert drawing.stdout is not None
        lines = drawing.stdout.read().splitlines()
        recording.close()
        server.close()
    if drawing.returncode:
        raise SystemExit(f"PsychoPy ended with {drawing.returncode}")
    told = json.loads(next(line for line in lines if line.startswith("{")))
    rows, figures = [], {"pictures": told["pictures"], "bytes": len(image)}
    for kind in ("without", "with"):
        took = np.array(told[kind])
        dropped = int((took > DROPPED_MS).sum())
        low, high = wilson_interval(dropped, len(took))
        figures[kind] = {
            "frames": len(took),
            "dropped": dropped,
            "interval": [low, high],
            "p50_ms": float(np.median(took)),
            "p99_ms": float(np.quantile(took, 0.99)),
        }
        rows.append(
            [
                f"{kind} pictures",
                len(took),
                f"{np.median(took):.1f}",
                f"{np.quantile(took, 0.99):.1f}",
                f"{dropped} ({dropped / len(took):.1%} [{low:.1%}-{high:.1%}])",
            ]
        )
    print_table(
        f"PsychoPy, {told['pictures']} pictures of {len(image) / 1000:.0f} kB",
        ["", "frames", "median ms", "p99 ms", "dropped"],
        rows,
    )
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
