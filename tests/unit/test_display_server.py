"""What the page's server answers, and to whom."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from email.message import Message
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import NamedTuple

import pytest
import websocket
from PIL import Image

from rtdecode import client as wire
from rtdecode.errors import ProtocolError
from rtdecode.publish.display import guard, web
from rtdecode.publish.display.trials import TRIALS
from rtdecode.publish.display.web import ASSETS, bound, plain
from tests.page import Page, Told, served

ROUTES = ("/", "/assets/page.js", "/stream", "/picture/a/1", "/stimulus/cat01", "/nothing")


@pytest.fixture
def watcher() -> Told:
    return Told()


@pytest.fixture
def port(watcher: Told, tmp_path: Path) -> Iterator[int]:
    (tmp_path / "stimuli").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "stimuli" / "cat01.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    with served(watcher, tmp_path / "stimuli") as address:
        yield int(address.rsplit(":", 1)[1].strip("/"))


class Answer(NamedTuple):
    """A status, headers and the body."""

    status: int
    headers: Message
    body: bytes


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    """Ask once."""
    with asked(port, path, method, body, **headers) as response:
        return Answer(response.status, response.headers, response.read())


@contextmanager
def asked(
    port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> Iterator[HTTPResponse]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    with closing(connection):
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        with connection.getresponse() as response:
            yield response


@pytest.mark.parametrize("path", ROUTES)
def test_another_host_is_refused_on_every_route(port: int, path: str) -> None:
    for host in (
        f"evil.example:{port}", "evil.example", "127.0.0.1", "localhost", "127.0.0.1:1", f"127.0.0.2:{port}", "",
        f"127.0.0.1:{port}.evil.example", f"localhost.:{port}", f"[::2]:{port}",
    ):  # fmt: skip
        assert ask(port, path, Host=host).status in (400, 403), host


@pytest.mark.parametrize("path", ROUTES)
def test_another_origin_is_refused_on_every_route(port: int, path: str) -> None:
    for origin in (
        "http://evil.example",
        "null",
        f"https://127.0.0.1:{port}",
        "http://127.0.0.1:1",
        f"http://a:{port}",
    ):
        for method in ("GET", "POST"):
            assert ask(port, path, method, b"", Origin=origin).status == 403, origin


def test_a_request_without_a_host_or_with_two_is_refused(port: int) -> None:
    for head in (b"", b"Host: 127.0.0.1:%d\r\nHost: evil.example\r\n" % port):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n" + head + b"\r\n")
            assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_the_page_is_served_under_its_own_names(port: int, name: str) -> None:
    host = f"{name}:{port}"
    assert ask(port, "/", Host=host).status == 200
    assert ask(port, "/", Host=host, Origin=f"http://{host}").status == 200


def test_every_answer_limits_what_a_browser_may_do(port: int) -> None:
    for path in ("/", "/stream", "/nothing", "/picture/a/1", "/stimulus/cat01"):
        headers = ask(port, path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == policy["img-src"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Content-Security-Policy" in ask(port, "/", Host="evil.example").headers


def test_all_that_the_page_asks_for_is_there(port: int) -> None:
    page = ask(port, "/").body.decode()
    assert "<script>" not in page
    assert "style=" not in page
    for name, kind in ASSETS.items():
        response = ask(port, f"/assets/{name}")
        assert (response.status, response.headers.get_content_type()) == (200, kind)
    assert ask(port, "/assets/server.py").status == 404
    assert ask(port, "/assets/..%2Fserver.py").status == 404


def test_stimuli_are_served_from_their_folder_alone(port: int) -> None:
    assert ask(port, "/stimulus/cat01").status == 200
    for name in ("..%2Fsecret", "%2E%2E%2Fsecret", "..", "cat02", "cat01.png%00", "a%0Ab", "<b>"):
        assert ask(port, f"/stimulus/{name}").status in (403, 404), name


def test_no_number_of_a_message_breaks_the_page(port: int, watcher: Told) -> None:
    strange = (math.nan, math.inf, -math.inf)
    with Page(f"http://127.0.0.1:{port}/") as page:
        page.follow()
        for value in strange:
            for message in (
                wire.Session(session="s", mode="calibrate", censor_fd_mm=value),
                wire.Heartbeat(session="s", every_s=value, t_published=value, uptime_s=value),
                wire.Run(session="s", run=1, state="started", t_published=value),
                wire.Volume(session="s", run=1, volume=1, motion=(value,) * 6, fd_mm=value, dvars=value, tsnr=value,
                            regions={"a": value}, stages={"total": value}, t_published=value),
                wire.Calibration(session="s", trials=9, percentile=value, interval=(value, value), p_value=value),
                wire.Calibration(session="s", trials=9, percentile=0.5, interval=(value, value)),
                wire.Fault(session="s", part="p", t_published=value),
                wire.Skipped(session="s", run=1, t_published=value),
                wire.Beta(session="s", run=1, trial="b", onset_s=value, final=True),
                wire.Score(session="s", run=1, trial="t", evidence=0.5, chance=0.1, stages={"total": value}),
                wire.Caption(session="s", run=1, trial="t", text="a", stages={"total": value}),
            ):  # fmt: skip
                watcher.tell(message)
                page.follow()
                assert page.board["session"]["mode"] == "calibrate"
        for refused in (wire.Score(session="s", trial="t", evidence=math.nan), wire.Calibration(trials=math.inf)):  # type: ignore[arg-type]
            with pytest.raises((ValueError, OverflowError)):
                watcher.tell(refused)
        watcher.tell(wire.Caption(session="s", run=1, trial="last", text="\ud800 \x00 </script>"))
        while page.board["trials"][-1]["trial"] != "last":
            page.follow()
        assert page.board["trials"][-1]["caption"] == "\ud800 \x00 </script>"


def test_what_is_shown_becomes_what_json_holds() -> None:
    shown = plain({1: (math.nan, [math.inf, {"a": -math.inf}], b"x"), "b": 1.5, "c": None, "d": True})
    assert shown == {"1": [None, [None, {"a": None}], "b'x'"], "b": 1.5, "c": None, "d": True}
    json.dumps(shown, allow_nan=False)


def test_a_picture_is_had_under_the_key_of_its_session_only(port: int, watcher: Told) -> None:
    watcher.tell(wire.Reconstruction(session="a", run=1, trial="t", revision=0, image=b"first"))
    board = watcher.board.state()
    address = f"/picture/{board['key']}/{board['trials'][0]['picture']}"
    assert ask(port, address).body == b"first"
    watcher.tell(wire.Reconstruction(session="b", run=1, trial="t", revision=0, image=b"second"))
    assert ask(port, address).status == 404
    after = watcher.board.state()
    other = f"/picture/{after['key']}/{after['trials'][0]['picture']}"
    assert other != address
    assert ask(port, other).body == b"second"


def test_only_what_has_changed_is_told_again(port: int, watcher: Told) -> None:
    watcher.tell(wire.Session(session="s", mode="decode"))
    with Page(f"http://127.0.0.1:{port}/") as page:
        page.follow()
        assert page.board.keys() == watcher.board.state().keys()
        watcher.tell(wire.Caption(session="s", run=1, trial="t", text="a"))
        assert page.until("trials")[-1]["caption"] == "a"
        watcher.tell(wire.Fault(session="s", part="disk", kind="low"))
        told = page.follow()
        while "notices" not in told:
            assert not told  # the moment alone
            told = page.follow()
        assert told == ["notices"]
        assert page.board == json.loads(json.dumps(watcher.board.state()))


def test_of_trials_only_those_that_changed_are_told_and_the_page_has_them_all(port: int, watcher: Told) -> None:
    def caption(number: int, words: str, session: str = "s") -> wire.Caption:
        return wire.Caption(session=session, run=1, trial=f"t{number}", text=words)

    with Page(f"http://127.0.0.1:{port}/") as page:
        page.follow()
        watcher.tell(*(caption(number, "first") for number in range(TRIALS + 3)))
        page.until("trials")
        watcher.tell(caption(0, "again"), caption(50, "other"))  # the first one was forgotten, and is new
        page.until("trials")
        assert [one["number"] for one in page.changed] == [51, TRIALS + 4]
        assert page.board["trials"] == watcher.board.state()["trials"]
        assert [one["trial"] for one in page.board["trials"][-2:]] == [f"t{TRIALS + 2}", "t0"]
        watcher.tell(wire.Session(session="another"))
        assert page.until("trials") == []
        watcher.tell(caption(1, "first", "another"))
        page.until("trials")
        assert page.board["trials"] == watcher.board.state()["trials"]


def test_a_notice_is_acknowledged_by_the_page_and_nobody_else(port: int, watcher: Told) -> None:
    watcher.tell(wire.Fault(session="s", part="disk", kind="low"))
    key = watcher.board.state()["key"]
    notice = watcher.board.state()["notices"]["new"][0]
    for headers in ({}, {"origin": "http://evil.example"}, {"host": "evil.example"}):
        told = {"origin": f"http://127.0.0.1:{port}", "timeout": 60, **headers}
        if not headers:
            told = {"suppress_origin": True, "timeout": 60}
        with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
            websocket.create_connection(f"ws://127.0.0.1:{port}/stream", **told)
    with Page(f"http://127.0.0.1:{port}/") as page, Page(f"http://127.0.0.1:{port}/") as other:
        other.follow()
        for wrong in ("", "[]", "{}", "[1]", '{"id": "x", "request": "acknowledge"}', "[" * 900, '{"id": NaN}',
                      '{"id": 1, "request": "acknowledge", "key": 1, "number": "x", "count": 1}'):  # fmt: skip
            assert "expected a JSON object" in page.say(wrong)["error"]
        assert not page.ask("acknowledge", key="other", number=notice["number"], count=1)["ok"]
        assert not page.ask("acknowledge", key=key, number=9, count=1)["ok"]
        assert len(watcher.board.state()["notices"]["new"]) == 1
        assert page.ask("acknowledge", key=key, number=notice["number"], count=1)["ok"]
        assert watcher.board.state()["notices"]["new"] == []
        while other.board["notices"]["new"]:  # another page knows of it as well
            other.follow()


def test_what_is_too_long_ends_the_connection_of_its_page_alone(port: int) -> None:
    with Page(f"http://127.0.0.1:{port}/") as page, Page(f"http://127.0.0.1:{port}/") as other:
        with pytest.raises((websocket.WebSocketException, OSError, json.JSONDecodeError)):
            page.say(json.dumps({"id": 1, "request": "control", "reason": "x" * 20_000}))
        other.follow()


def test_silent_connections_give_way_to_the_operator(port: int) -> None:
    with Page(f"http://127.0.0.1:{port}/") as page, ExitStack() as silent:
        page.follow()
        many = []
        for number in range(400):
            connection = silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: 127")  # half a request
            many.append(connection)
        assert ask(port, "/").status == 200
        page.follow()  # the page that is open goes on
        assert sum(is_open(connection) for connection in many) < guard.CONNECTIONS


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x"])
def test_who_does_not_finish_a_request_is_let_go(monkeypatch: pytest.MonkeyPatch, watcher: Told, sent: bytes) -> None:
    monkeypatch.setattr(guard, "REQUEST_S", 0.2)
    with served(watcher) as address, socket.socket() as connection:
        connection.settimeout(60)
        connection.connect(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))))
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch, watcher: Told) -> None:
    monkeypatch.setattr(web, "STALL_S", 0.3)
    watcher.tell(wire.Session(session="s", categories=tuple(f"{n} {'x' * 300}" for n in range(3000))))
    with served(watcher) as address, ExitStack() as silent:
        silent.enter_context(Page(address))
        deadline = time.monotonic() + 60
        number = 0
        while watcher.followed:  # its connection is full, and the server gives it up
            assert time.monotonic() < deadline, "not let go"
            watcher.tell(wire.Session(session="s", categories=tuple(f"{n} {number} {'x' * 300}" for n in range(3000))))
            number += 1
            time.sleep(0.01)
        with Page(address) as page:
            page.follow()


def test_a_port_that_is_taken_is_told(port: int) -> None:
    with pytest.raises(ProtocolError, match="choose another --port"):
        bound(Told(), None, port)
