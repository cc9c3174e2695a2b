"""Programs that speak neither ZeroMQ nor msgpack close a loop through the gateway."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from rtdecode import client as wire
from rtdecode.publish.gateway.relay import jsonable
from rtdecode.publish.gateway.web import bound
from tests.closing import STEPS, RegulatingSession

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


class Gateway:
    """A gateway that serves, and requests to it."""

    def __init__(self, port: int, lines: int) -> None:
        self.port, self.lines = port, lines

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        connection.request(method, path, content, {**sent, **headers})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text

    @contextmanager
    def line(self) -> Iterator[Any]:
        with (
            socket.create_connection(("127.0.0.1", self.lines), timeout=60) as connection,
            connection.makefile("rw", newline="\n") as line,
        ):
            yield line


@contextmanager
def running(addresses: tuple[str, str], pages: Path | None = None) -> Iterator[Gateway]:
    server, listening, port, lines = bound(addresses, port=0, lines=0, pages=pages)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    serving.start()
    while not server.started:
        time.sleep(0.01)
    yield Gateway(port, lines)
    server.should_exit = True
    serving.join()


@pytest.fixture(scope="module")
def session() -> Iterator[RegulatingSession]:
    made = RegulatingSession()
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(session: RegulatingSession) -> Iterator[Gateway]:
    with running(session.addresses, EXAMPLES / "browser_loop") as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(session: RegulatingSession) -> None:
    session.events.clear()
    session.levels.clear()


def assert_regulated(session: RegulatingSession) -> None:
    """The participant saw what the daemon told, and its response rose with it."""
    assert [event.kind for event in session.events] == ["run_start", "trial", "trial", "trial", "run_end"]
    assert session.levels == sorted(set(session.levels))
    seen = [event.condition for event in session.events if event.kind == "trial"]
    assert seen == ["seen-0", *(f"seen-{step}" for step in session.steps[:2])]


def test_a_browser_closes_the_loop(browser: Any, gateway: Gateway, session: RegulatingSession) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(f"http://127.0.0.1:{gateway.port}/")
    WebDriverWait(browser, 60, 0.05).until(lambda b: b.title == "done")
    assert_regulated(session)
    assert browser.find_element("id", "screen").text == f"step {session.steps[2]} of {STEPS}"
    assert browser.get_log("browser") == []


def test_the_requests_of_the_matlab_example_close_the_loop(gateway: Gateway, session: RegulatingSession) -> None:
    script = (EXAMPLES / "matlab_loop" / "loop.m").read_text(encoding="utf-8")
    assert set(re.findall(r"'/\w[\w/]*'|'(?:topics|after|wait_s)'", script)) == {
        "'/request/event'", "'/messages'", "'topics'", "'after'", "'wait_s'",
    }  # fmt: skip
    form = {"Content-Type": "application/x-www-form-urlencoded", "X-Rtdecode": "1"}

    def announce(**pairs: str) -> bool:
        return bool(gateway.ask("POST", "/request/event", urlencode(pairs).encode(), **form)[1]["ok"])

    assert announce(kind="run_start", run="1")
    seen = after = 0
    for number in range(3):
        trial = f"m{number}"
        assert announce(
            kind="trial", run="1", trial=trial, onset_s=str(20 * number), duration_s="2", condition=f"seen-{seen}"
        )
        shown: list[Any] = []
        while not shown:
            _, found = gateway.ask("GET", f"/messages?topics=feedback&after={after}&wait_s=20")
            after = found["after"]
            shown = [m for m in found["messages"] if m["trial"] == trial and m["state"] == "shown"]
        seen = shown[0]["step"]
    assert announce(kind="run_end", run="1")
    assert_regulated(session)
    _, latest = gateway.ask("GET", "/latest?topics=feedback")
    assert (latest["message"]["step"], latest["message"]["state"], latest["silent"]) == (seen, "shown", False)


def test_lines_of_text_close_the_loop(gateway: Gateway, session: RegulatingSession) -> None:
    with gateway.line() as line:

        def ask(text: str) -> str:
            line.write(text + "\r\n")
            line.flush()
            return str(line.readline())

        assert ask("listen feedback") == "ok\n"
        assert ask("event kind=run_start run=1") == "ok\n"
        seen = "0"
        for number in range(3):
            line.write(f"event kind=trial run=1 trial=e{number} onset_s=2.5 duration_s=2 condition=seen-{seen}\n")
            line.flush()
            told = {}
            while told.get("state") != "shown":
                words = line.readline().split()
                told = dict(word.split("=", 1) for word in words[1:])
                assert words[0] in ("ok", "feedback"), words
            assert (told["trial"], told["final"], told["steps"]) == (f"e{number}", "1", str(STEPS))
            seen = told["step"]
        while (answer := ask("event kind=run_end run=1")) != "ok\n":
            assert answer.startswith(("ok", "feedback")), answer
        assert ask("last score").startswith("ok score ")
    assert_regulated(session)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("nonsense", "error request: expected one of ping, mode"),
        ("event kind=trial run=1", "error trial event lacks trial, onset_s, duration_s"),
        ("event kind=trial run=none", "error request not understood: Expected `int`"),
        ("event kind=run_start run=1 more=2", "error request not understood: Object contains unknown field `more`"),
        ("listen nothing", "error topics: expected some of session"),
        ("last nothing", "error topics: expected some of session"),
        ("replay topic=score since_seq=0", "error request: expected one of"),
        ("event 'kind", "error request not understood"),
    ],
)
def test_a_line_that_is_wrong_is_answered_with_what_is_wrong(gateway: Gateway, line: str, answer: str) -> None:
    with gateway.line() as connection:
        connection.write(line + "\n")
        connection.flush()
        assert connection.readline().startswith(answer)


def test_names_that_look_like_numbers_stay_names(gateway: Gateway, session: RegulatingSession) -> None:
    with gateway.line() as connection:
        connection.write('event kind=trial run=1 trial=007 onset_s=1 duration_s=2 stimulus="12"\n')
        connection.flush()
        assert connection.readline().startswith("ok")
    assert (session.events[0].trial, session.events[0].stimulus, session.events[0].onset_s) == ("007", "12", 1.0)


def test_random_bytes_are_survived(gateway: Gateway, session: RegulatingSession) -> None:
    draw = random.Random(5)
    for port in (gateway.port, gateway.lines):
        for size in (1, 100, 20_000):
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(draw.randbytes(size))
    with gateway.line() as connection:
        connection.write("ping\n")
        connection.flush()
        assert connection.readline().startswith("ok t_wall=")
    assert gateway.ask("POST", "/request/ping", {})[1]["ok"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/request/event", b"kind=trial", {"Content-Type": "text/plain"}, 403),  # as another site's form
        ("POST", "/request/event", b"kind=trial", {"Content-Type": "application/x-www-form-urlencoded"}, 403),
        ("POST", "/request/event", {}, {"Origin": "http://elsewhere.example"}, 403),
        ("GET", "/latest", None, {"Host": "elsewhere.example"}, 403),
        ("POST", "/request/event", b"{", {}, 400),
        ("POST", "/request/event", b"[1]", {}, 400),
        ("POST", "/request/event", b" " * 70_000, {}, 400),
        ("GET", "/messages?after=x", None, {}, 400),
        ("GET", "/messages?topics=beta", None, {}, 400),
    ],
)
def test_strange_requests_are_refused(
    gateway: Gateway,
    session: RegulatingSession,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
) -> None:
    assert gateway.ask(method, path, body, **headers)[0] == status
    assert session.events == []


def test_a_refusal_of_the_daemon_is_passed_on(gateway: Gateway) -> None:
    status, answer = gateway.ask("POST", "/request/mode", {"mode": "decode", "bundle": "b"})
    assert (status, answer["ok"]) == (200, False)
    assert "not expected of a client" in answer["error"]


@pytest.mark.parametrize("origin", ["http://elsewhere.example", None])
def test_a_websocket_of_another_site_is_refused(gateway: Gateway, origin: str | None) -> None:
    shake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    shake |= {"Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode()} | ({"Origin": origin} if origin else {})
    assert gateway.ask("GET", "/stream", **shake)[0] == 403


def test_a_websocket_says_what_is_wrong_and_stays(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as peer:
        host = f"127.0.0.1:{gateway.port}"
        peer.sendall(
            f"GET /stream?topics=caption HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode()
        )
        stream = peer.makefile("rb")
        while stream.readline().strip():
            pass
        for sent in ("nonsense", "[]", '{"id": 3, "request": "ping"}'):
            peer.sendall(b"\x81" + bytes([0x80 | len(sent)]) + bytes(4) + sent.encode())  # masked with zeros
        answers = []
        for _ in range(3):
            head = stream.read(2)
            length = head[1] if head[1] < 126 else struct.unpack(">H", stream.read(2))[0]
            answers.append(json.loads(stream.read(length)))
    assert [answer["ok"] for answer in answers] == [False, False, True]
    assert answers[2]["answer"] == 3


def test_json_holds_what_a_message_tells() -> None:
    message = wire.Reconstruction(image=b"\xff\xd8", stages={"total": float("nan")}, width=4)
    told = json.loads(json.dumps(jsonable(message), allow_nan=False))
    assert base64.b64decode(told["image"]) == b"\xff\xd8"
    assert (told["topic"], told["width"], told["stages"]) == ("reconstruction", 4, {"total": None})
    array = wire.Array("<f4", (2,), struct.pack("<2f", 1.5, -2.0))
    told = json.loads(json.dumps(jsonable(wire.Embedding(tokens=array)), allow_nan=False))["tokens"]
    assert struct.unpack("<2f", base64.b64decode(told["data"])) == (1.5, -2.0)
