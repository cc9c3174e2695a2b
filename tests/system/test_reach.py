"""One session of a real daemon that asks for keys and waits for the disk, told to every kind of client at once."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shlex
import signal
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.clock import SystemClock
from rtdecode.demo.processes import free_port
from rtdecode.session.entries import read_outputs
from rtdecode.simulate.scanner import Scanner
from tests.system.test_feedback import PLAN, participant  # noqa: F401 - a fixture
from tests.system.test_two_visits import PATIENCE_S, started

pytestmark = pytest.mark.system

ONE_RUN = replace(PLAN, calibration_runs=1, decoding_runs=0, volumes_per_run=24, trials_per_run=4)
LAST = ONE_RUN.volumes_per_run - 1


def keyed(folder: Path, participant: Any) -> tuple[Path, tuple[str, str]]:  # noqa: F811
    """Write settings and keys, as a person would."""
    addresses = (f"tcp://0.0.0.0:{free_port()}", f"tcp://0.0.0.0:{free_port()}")
    (folder / "export").mkdir()
    participant.write_region(folder / "region.nii.gz")
    for name, role in (("experiment", "experiment"), ("watcher", "observe")):
        out = str(folder / f"{name}.key")
        assert main(["keys", "new", name, "--role", role, "--keys", str(folder / "keys.toml"), "--out", out]) == 0
    raw = {
        "session": {"participant": "sim", "output": "."},
        "scanner": {"export_dir": "export"},
        "estimate": {"regions": {"visual": "region.nii.gz"}},
        "calibration": {"runs": 2},
        "feedback": {"score": "region", "regions": ["visual"], "baseline_volumes": 6, "deadline_s": 60.0},
        "publish": {"stream": addresses[0], "requests": addresses[1], "keys": "keys.toml", "send": "after_sync"},
    }
    path = folder / "session.toml"
    path.write_text(tomli_w.dumps(raw))
    return path, tuple(one.replace("0.0.0.0", "127.0.0.1") for one in addresses)  # type: ignore[return-value]


def told_by_loop(addresses: tuple[str, str], key: str, ready: threading.Event) -> list[tuple[int | None, str]]:
    async def follow() -> list[tuple[int | None, str]]:
        found: list[tuple[int | None, str]] = []
        async with wire.AsyncClient(*addresses, topics=["feedback", "heartbeat"], key=key) as client:
            await client.receive()  # a heartbeat: it is connected
            ready.set()
            async for message in client.messages():
                if isinstance(message, wire.Feedback):
                    found.append((message.volume, message.state))
                    if message.volume == LAST:
                        return found
        return found

    return asyncio.run(follow())


def told_by_lines(port: int, ready: threading.Event) -> list[tuple[int | None, str]]:
    found: list[tuple[int | None, str]] = []
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer, peer.makefile("rw") as line:
        line.write("listen feedback\n")
        line.flush()
        assert line.readline() == "ok\n"
        ready.set()
        while not found or found[-1][0] != LAST:
            told = dict(word.partition("=")[::2] for word in shlex.split(line.readline())[1:])
            found.append((int(told["volume"]), told["state"]))
    return found


def told_by_http(port: int, ready: threading.Event) -> list[tuple[int | None, str]]:
    found: list[tuple[int | None, str]] = []
    after = 0
    ready.set()
    while not found or found[-1][0] != LAST:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("GET", f"/messages?topics=feedback&after={after}&wait_s=5")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        after = answer["after"]
        found += [(one["volume"], one["state"]) for one in answer["messages"]]
    return found


def test_every_client_is_told_the_same_by_a_daemon_that_asks_for_keys(
    participant: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings, addresses = keyed(tmp_path, participant)
    experiment_key, watcher_key = (str(tmp_path / f"{name}.key") for name in ("experiment", "watcher"))
    scanner = Scanner(ONE_RUN, participant, tmp_path / "export", SystemClock(), "max", live_dates=True)
    piped = {"stdout": subprocess.PIPE}
    gateway_of = ("gateway", str(settings), "--key", watcher_key, "--port", "0", "--lines", "0")
    told: dict[str, list[tuple[int | None, str]]] = {}
    with started("run", str(settings), **piped) as daemon, started(*gateway_of, **piped) as gateway:
        assert daemon.stdout is not None
        assert gateway.stdout is not None
        with daemon.stdout, gateway.stdout:
            assert "stream tcp://0.0.0.0" in daemon.stdout.readline()
            ports = [int(port) for port in re.findall(r":(\d+)", gateway.stdout.readline())]
            watchers = []
            for name, follow in (
                ("asyncio", lambda ready: told_by_loop(addresses, watcher_key, ready)),
                ("lines", lambda ready: told_by_lines(ports[1], ready)),
                ("http", lambda ready: told_by_http(ports[0], ready)),
            ):
                ready = threading.Event()

                def watch(name: str = name, follow: Any = follow, ready: threading.Event = ready) -> None:
                    told[name] = follow(ready)

                watchers.append(threading.Thread(target=watch, name=name, daemon=True))
                watchers[-1].start()
                assert ready.wait(PATIENCE_S), name
            with (
                wire.Client(*addresses, topics=["feedback"], key=experiment_key) as experiment,
                wire.Client("", addresses[1], key=watcher_key) as watcher,
            ):
                experiment.catch_up()
                with pytest.raises(wire.RequestError, match="has the role observe") as refused:
                    watcher.event(kind="run_start", run=1)
                assert refused.value.code == "role"
                scanner.play(lambda message: experiment.event(**message))
                told["sync"] = []
                while not told["sync"] or told["sync"][-1][0] != LAST:
                    message = experiment.receive(PATIENCE_S)
                    assert message is not None
                    told["sync"] += [(message.volume, getattr(message, "state", ""))]
            for one in watchers:
                one.join(PATIENCE_S)
            daemon.send_signal(signal.SIGINT)
            assert daemon.wait(PATIENCE_S) == 0
    outputs = read_outputs(tmp_path / "sub-sim_ses-01" / "journal" / "outputs.journal")
    kept = [wire.unpack(entry.topic.encode(), entry.payload) for _, entry in outputs]
    journalled = [(m.volume, m.state) for m in kept if isinstance(m, wire.Feedback)]
    assert [volume for volume, _ in journalled] == list(range(ONE_RUN.volumes_per_run))
    assert {state for _, state in journalled} >= {"baseline", "shown"}
    assert {name: found for name, found in told.items() if found != journalled} == {}
