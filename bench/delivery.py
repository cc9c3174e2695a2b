"""What stands between a decoded picture and its client: encoding, the search of a pool, the disk.

Encodings of one picture of 768 px, drawn with the spectrum of natural ones, each as a ratio to PNG at level 1 in the
same run; lossless ones must give the picture back. Pools of embeddings of MindEye2's size, mapped from the disk,
against a comparison with every one of them. Messages of 100 kB, ten a second, from their being published to their
receipt over loopback, with both settings of `publish.send`; each must come once, in order.

    python bench/delivery.py [--json FILE] [--quick] [--rows N] [--disk DIR] [--seed N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
from _report import print_table, write_json
from PIL import Image

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.decode.score.mapped import fill_tensors, map_tensor
from rtdecode.decode.score.pool import PROJECTED, ImagePool, narrowed
from rtdecode.publish.pictures import Encoding, encoded
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from rtdecode.session.recording import Recording
from rtdecode.settings import SessionSettings
from rtdecode.statistics import row_cosines

PX = 768
SHAPE = (256, 1664)
ROWS = 2000
MESSAGE_BYTES = 100_000
QUERIES = 20
GOAL_ENCODED_MS, GOAL_SEARCH_MS, GOAL_RECALL = 25.0, 50.0, 0.99
COLUMNS = {"wall_ms": "{:.1f}", "cpu_ms": "{:.1f}", "of_png": "{:.2f}", "kib": "{:.0f}", "root_mean_square": "{:.1f}"}
_SHARED, _GROUP, _OWN, _NOISE = 0.7, 0.5, 0.5, 0.8


def natural_picture(seed: int) -> np.ndarray[Any, Any]:
    """Draw a picture (PX, PX, 3) whose power falls with the square of the frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(PX)[:, None], np.fft.rfftfreq(PX)[None])
    frequency[0, 0] = 1 / PX
    drawn = np.fft.rfft2(rng.standard_normal((3, PX, PX))) / frequency**1.4
    values = np.fft.irfft2(drawn, s=(PX, PX)).transpose(1, 2, 0)
    return np.rint(255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)


def timed(action: Callable[[], object], times: int) -> dict[str, float]:
    """Median ms of the wall clock and of this thread's processor time, which other work on the machine leaves alone."""
    wall, own = [], []
    for _ in range(times + 1):
        began, worked = time.perf_counter(), time.thread_time()
        action()
        wall.append(1e3 * (time.perf_counter() - began))
        own.append(1e3 * (time.thread_time() - worked))
    return {"wall_ms": float(np.median(wall[1:])), "cpu_ms": float(np.median(own[1:]))}


def encodings(seed: int, times: int) -> dict[str, dict[str, float]]:
    """Time every encoding that the settings offer."""
    picture, found = natural_picture(seed), {}
    names: tuple[Encoding, ...] = get_args(Encoding)
    for name in names:
        content = encoded(picture, name)
        with Image.open(BytesIO(content)) as opened:
            off = np.asarray(opened.convert("RGB")).astype(int) - picture
        if name != "jpeg" and off.any():
            raise SystemExit(f"{name} does not give the picture back")
        ms = timed(lambda name=name: encoded(picture, name), times)
        found[name] = {**ms, "kib": len(content) / 1024, "root_mean_square": float(np.sqrt(np.mean(off**2.0)))}
    for one in found.values():
        one["of_png"] = one["cpu_ms"] / found["png"]["cpu_ms"]
    return found


def pool(rows: int, seed: int, folder: Path) -> dict[str, Any]:
    """Time the search of embeddings that share much, as pictures' do, and count how often the exact first is found."""
    rng = np.random.default_rng(seed)
    width = int(np.prod(SHAPE))
    shared = rng.standard_normal(width, dtype=np.float32)
    groups = rng.standard_normal((20, width), dtype=np.float32)
    path = folder / "pool.safetensors"
    tensors = {"tokens": ((rows, *SHAPE), np.float16), PROJECTED: ((rows, 1024), np.float32)}
    with fill_tensors(path, tensors, {}) as arrays:
        for i in range(rows):
            own = rng.standard_normal(width, dtype=np.float32)
            row = _SHARED * shared + _GROUP * groups[i % len(groups)] + _OWN * own
            arrays["tokens"][i] = row.reshape(SHAPE)
            arrays[PROJECTED][i] = narrowed(row[None])[0]
    tokens, narrow = map_tensor(path, "tokens"), map_tensor(path, PROJECTED)
    searched = ImagePool([str(i) for i in range(rows)], tokens, narrow=narrow)
    hits, taken = 0, []
    for place in rng.permutation(rows)[:QUERIES]:
        query = tokens[place].astype(np.float32) + _NOISE * rng.standard_normal(SHAPE, dtype=np.float32)
        exact = int(np.argmax(row_cosines(query.ravel(), tokens.reshape(rows, -1))))
        taken.append(timed(lambda query=query: searched.nearest(query, 5), 3))
        hits += searched.nearest(query, 5)[0][0] == str(exact)
    return {
        "rows": rows,
        "how": searched.how,
        "recall": hits / QUERIES,
        "wall_ms": float(np.median([one["wall_ms"] for one in taken])),
        "cpu_ms": float(np.median([one["cpu_ms"] for one in taken])),
    }


def delivered(send: str, count: int, folder: Path) -> dict[str, Any]:
    """Time messages on their way to a client, journalled on the disk of `folder`."""
    clock, took = SystemClock(), []
    recording = Recording(SessionSettings(participant=send.replace("_", ""), output=folder), "", clock)
    server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    out = Publisher(recording.session, clock, server, recording)
    server.start(lambda _: {}, recording.sync if send == "after_sync" else lambda: True)
    picture = np.random.default_rng(0).bytes(MESSAGE_BYTES)
    with wire.Client(server.stream, server.requests, topics=["reconstruction", "heartbeat"]) as client:
        while client.receive(0.02) is None:
            out.publish(wire.Heartbeat())
        for number in range(count):
            began = time.perf_counter()
            out.publish(wire.Reconstruction(volume=number, image=picture))
            message = client.receive(30.0)
            while isinstance(message, wire.Heartbeat):
                message = client.receive(30.0)
            took.append(1e3 * (time.perf_counter() - began))
            if message is None or message.volume != number:
                raise SystemExit(f"expected message {number}, got {message}")
            time.sleep(max(0.0, 0.1 - 1e-3 * took[-1]) if count > 20 else 0.0)
    recording.close()
    server.close()
    return {"p50_ms": float(np.median(took)), "p99_ms": float(np.quantile(took, 0.99)), "messages": count}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="few rows and runs: does it run?")
    parser.add_argument("--rows", type=int, default=ROWS, help="embeddings in the pool, 0.85 MB each on the disk")
    parser.add_argument(
        "--disk", type=Path, help="folder on the disk that sessions are kept on; the system's by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows, times = (60, 2) if arguments.quick else (arguments.rows, 9)
    by_name = encodings(arguments.seed, times)
    print_table(
        f"One picture of {PX} px, one thread",
        ["", "ms", "processor ms", "of PNG", "KiB", "difference, rms"],
        [[name, *(form.format(one[key]) for key, form in COLUMNS.items())] for name, one in by_name.items()],
    )
    print(f"Goal of the default: {GOAL_ENCODED_MS:g} ms")
    with tempfile.TemporaryDirectory() as folder:
        found = pool(rows, arguments.seed, Path(folder))
    print(f"\nPool: {found['how']}")
    print(
        f"A search takes {found['wall_ms']:.1f} ms ({found['cpu_ms']:.1f} of the processor, goal {GOAL_SEARCH_MS:g}); "
        f"the exact first is first in {100 * found['recall']:.0f} % (goal {100 * GOAL_RECALL:g})"
    )
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        sent = {s: delivered(s, 10 if arguments.quick else 300, Path(folder)) for s in ("after_write", "after_sync")}
    print_table(
        f"One message of {MESSAGE_BYTES // 1000} kB to its client, ms",
        ["publish.send", "median", "p99"],
        [[name, f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}"] for name, one in sent.items()],
    )
    if arguments.json:
        write_json(arguments.json, {"encodings": by_name, "pool": found, "sent": sent})
    return 0


if __name__ == "__main__":
    sys.exit(main())
