"""Many subscribers at once, some of which mean no good, against bare pyzmq with the same payload in the same run.

50 subscribers at ten messages a second of 100 kB: 47 read, one is stopped, one reads a byte a second, one sends random
bytes. The daemon's part (journal, numbers, sockets) and a bare PUB socket publish by turns to subscribers of the same
kind. Every one that reads must have each message once and in order. Latency is from publishing to receipt; memory is
the resident set of the publishing process. After that the same process estimates a volume twice a second as well, alone
and then with the subscribers: the time of each, by the clock and of its thread's processor time.

    python bench/load.py [--json FILE] [--quick] [--seconds N] [--disk DIR]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from _report import print_table, write_json
from _volume_path import VolumePath

from rtdecode import client as wire
from rtdecode.clock import SystemClock
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from rtdecode.session.recording import Recording
from rtdecode.settings import SessionSettings

READERS = 47
BYTES = 100_000
PERIOD_S = 0.1
GOAL_RATIO = 2.0
Publish = Callable[[int, bool], None]
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)  # of ZMTP 3.0
_READY = b"\x05READY\x0bSocket-Type" + (3).to_bytes(4, "big") + b"SUB"


def read(address: str, readers: int, ready: Any, results: Any) -> None:
    """Read with many subscribers until a message says that it is the last; tell latencies and gaps."""
    context, poller = zmq.Context(), zmq.Poller()
    numbers: dict[Any, int] = {}
    for _ in range(readers):
        one = context.socket(zmq.SUB)
        one.setsockopt(zmq.RCVHWM, 0)
        one.subscribe(b"reconstruction")
        one.connect(address)
        poller.register(one, zmq.POLLIN)
        numbers[one] = -1
    took, gaps, heard, left = [], 0, set(), readers
    while left:
        for one, _ in poller.poll():
            message = msgpack.unpackb(one.recv_multipart()[1])
            now = time.monotonic()
            if message["volume"] < 0:  # sent until all are there
                heard.add(one)
                if len(heard) == readers:
                    ready.set()
                continue
            took.append(1e3 * (now - message["t_acquired"]))
            gaps += message["volume"] != numbers[one] + 1
            numbers[one] = message["volume"]
            if message["final"]:
                poller.unregister(one)
                left -= 1
    results.put((took, gaps))
    context.destroy(linger=0)


def slow(address: str, over: threading.Event) -> None:
    """Subscribe to everything and read a byte a second."""
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as peer, suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.sendall(_GREETING + bytes([4, len(_READY)]) + _READY + b"\x00\x01\x01")
        while not over.wait(1.0):
            peer.recv(1)


def garbage(address: str, over: threading.Event) -> None:
    """Send random bytes, on new connections again and again."""
    draw = random.Random(1)
    while not over.wait(0.05):
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as peer:
            peer.sendall(draw.randbytes(2000))


def measured(address: str, publish: Publish, messages: int, readers: int) -> dict[str, float]:
    """Publish to all subscribers; return latencies, gaps, and how the memory grew."""
    ways = multiprocessing.get_context("spawn")
    ready, results, over = ways.Event(), ways.Queue(), threading.Event()
    reading = ways.Process(target=read, args=(address, readers, ready, results))
    there, unread = ways.Event(), ways.Queue()
    stopped = ways.Process(target=read, args=(address, 1, there, unread))
    hostile = [threading.Thread(target=one, args=(address, over)) for one in (slow, garbage)]
    for one in (reading, stopped, *hostile):
        one.start()
    while not (ready.is_set() and there.is_set()):
        publish(-1, False)
        time.sleep(0.05)
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    before, due = resident(), time.monotonic()
    for number in range(messages):
        publish(number, number == messages - 1)
        due += PERIOD_S
        time.sleep(max(0.0, due - time.monotonic()))
    took, gaps = results.get()
    grown = resident() - before
    over.set()
    stopped.kill()
    for one in (reading, stopped, *hostile):
        one.join()
    return {
        "p50_ms": float(np.median(took)),
        "p99_ms": float(np.quantile(took, 0.99)),
        "received": len(took),
        "gaps": gaps,
        "grown_mib": grown / 2**20,
    }


def resident() -> int:
    """Return the resident set of this process, bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024


@contextmanager
def publishing(folder: Path) -> Iterator[tuple[Server, Publisher, Publish]]:
    """Sockets, numbers and journal as the daemon has them, and what publishes a picture by them."""
    clock = SystemClock()
    recording = Recording(SessionSettings(participant="load", output=folder), "", clock)
    server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    out = Publisher(recording.session, clock, server, recording)
    server.start(lambda _: {})
    image = np.random.default_rng(0).bytes(BYTES)

    def publish(number: int, final: bool) -> None:
        out.publish(wire.Reconstruction(volume=number, image=image, final=final, t_acquired=time.monotonic()))

    yield server, out, publish
    recording.close()
    server.close()


def with_daemon(messages: int, readers: int, folder: Path) -> dict[str, float]:
    """Publish as the daemon does."""
    with publishing(folder) as (server, _, publish):
        return {**measured(server.stream, publish, messages, readers), "strangers": server.strangers}


def volumes_meanwhile(messages: int, readers: int, folder: Path) -> dict[str, dict[str, float]]:
    """Estimate volumes in the process that publishes, without subscribers and with them."""
    with publishing(folder) as (server, out, publish):
        path = VolumePath(lambda number: out.publish(wire.Volume(run=1, volume=number)))
        with path.going_on() as alone:
            time.sleep(messages * PERIOD_S)
        with path.going_on() as loaded:
            measured(server.stream, publish, messages, readers)
    return {"alone": of_volumes(alone), "under load": of_volumes(loaded)}


def of_volumes(took: list[tuple[float, float]]) -> dict[str, float]:
    clock, processor = np.transpose(took)
    return {
        "volumes": len(took),
        "median_ms": float(np.median(clock)),
        "p99_ms": float(np.quantile(clock, 0.99)),
        "processor_median_ms": float(np.median(processor)),
        "processor_p99_ms": float(np.quantile(processor, 0.99)),
    }


def with_bare(messages: int, readers: int) -> dict[str, float]:
    """Publish with a bare PUB socket."""
    context = zmq.Context()
    bare = context.socket(zmq.PUB)
    port = bare.bind_to_random_port("tcp://127.0.0.1")
    image = np.random.default_rng(0).bytes(BYTES)

    def publish(number: int, final: bool) -> None:
        message = {"volume": number, "image": image, "final": final, "t_acquired": time.monotonic()}
        bare.send_multipart([b"reconstruction", msgpack.packb(message)])

    found = measured(f"tcp://127.0.0.1:{port}", publish, messages, readers)
    context.destroy(linger=0)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="few subscribers and messages: does it run?")
    parser.add_argument("--seconds", type=int, default=60, help="of each of the two")
    parser.add_argument("--disk", type=Path, help="folder on the disk that sessions are kept on")
    arguments = parser.parse_args()
    messages, readers = (10, 5) if arguments.quick else (int(arguments.seconds / PERIOD_S), READERS)
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        found = {"rtdecode": with_daemon(messages, readers, Path(folder)), "bare pyzmq": with_bare(messages, readers)}
        volumes = volumes_meanwhile(messages, readers, Path(folder) / "volumes")
    print_table(
        f"{readers} subscribers and three that mean no good, {messages} messages of {BYTES // 1000} kB",
        ["", "median ms", "p99 ms", "received", "gaps", "memory, MiB"],
        [
            [
                name,
                f"{one['p50_ms']:.1f}",
                f"{one['p99_ms']:.1f}",
                one["received"],
                one["gaps"],
                f"{one['grown_mib']:+.0f}",
            ]
            for name, one in found.items()
        ],
    )
    ratio = found["rtdecode"]["p50_ms"] / found["bare pyzmq"]["p50_ms"]
    print(
        f"\nMedian: {ratio:.2f} x that of bare pyzmq (goal {GOAL_RATIO:g}); strangers: {found['rtdecode']['strangers']}"
    )
    print_table(
        "a volume of 64 x 64 x 36 in the daemon's process",
        ["", *volumes["alone"]],
        [[name, *(f"{value:.4g}" for value in one.values())] for name, one in volumes.items()],
    )
    if arguments.json:
        write_json(arguments.json, {**found, "ratio": ratio, "volumes": volumes})
    wrong = [name for name, one in found.items() if one["gaps"] or one["received"] != messages * readers]
    if wrong:
        print(f"FAILED: messages are missing or out of order: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
