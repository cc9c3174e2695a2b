"""Clients that outlive sessions, and peers that mean no good, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import zmq

from rtdecode import client as wire
from rtdecode.demo.processes import free_port
from rtdecode.errors import Busy, Late
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import ANSWERS_WAITING, STRANGE_SUBSCRIPTIONS, SUBSCRIPTION_BYTES, Server
from tests.conftest import FakeClock
from tests.unit.test_wire import ListLog


class Session:
    """What a daemon is to its clients: a server, a publisher and answers that keep the daemon's rules."""

    def __init__(self, name: str, addresses: tuple[str, str]) -> None:
        self.server = Server(*addresses)
        self.clock = FakeClock()
        self.out = Publisher(name, self.clock, self.server, ListLog())
        self.events: list[requests.Event] = []
        self.go = threading.Event()
        self.go.set()
        self.busy = False
        self.answered = 0
        self.server.start(self.answer)

    def answer(self, request: requests.AnyRequest) -> dict[str, object]:
        self.go.wait()
        self.answered += 1
        if request.expires is not None and time.monotonic() > request.expires:
            raise Late("too late")
        match request:
            case requests.Ping():
                return {"t_wall": self.clock.wall(), "t_mono": time.monotonic()}
            case requests.Replay():
                return self.out.replay(request.topic, request.since_seq)
            case requests.Snapshot():
                return {"messages": self.out.snapshot()}
        if self.busy:
            raise Busy("being resumed: 3 of 9")
        match request:
            case requests.Event():
                self.events.append(request)
                return {"warnings": ["doubtful"]}
            case requests.Mode():
                raise KeyError("nobody foresaw this")
        return {}

    def close(self) -> None:
        self.go.set()
        self.server.close()


@pytest.fixture
def addresses() -> tuple[str, str]:
    return f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def session(addresses: tuple[str, str]) -> Iterator[Session]:
    made = Session("01-01-a", addresses)
    yield made
    made.close()


def volumes(client: wire.Client, session: Session, count: int) -> list[tuple[str, int | None]]:
    """Receive until so many volumes came; heartbeats go on, as from a daemon."""
    got: list[tuple[str, int | None]] = []
    for _ in range(200):
        message = client.receive(0.05)
        if isinstance(message, wire.Volume):
            got.append((message.session, message.volume))
        if len(got) == count:
            break
        if message is None:
            session.out.publish(wire.Heartbeat())
    return got


@pytest.mark.parametrize("topics", [("volume",), tuple(wire.TOPICS)])
def test_a_client_that_stays_gets_all_of_the_next_session(addresses: tuple[str, str], topics: tuple[str, ...]) -> None:
    with wire.Client(*addresses, topics=topics) as client:
        for name in ("01-01-a", "02-01-b", "02-01-c"):  # the last is another recording of the same name
            session = Session(name, addresses)
            client.catch_up()
            session.out.publish(wire.Session(state="running"))
            for index in range(40):
                session.out.publish(wire.Volume(volume=index))
            assert volumes(client, session, 40) == [(name, index) for index in range(40)]
            assert client.session == name
            session.close()


def test_a_client_that_did_not_ask_is_told_of_the_next_session_too(addresses: tuple[str, str]) -> None:
    first = Session("01-01-a", addresses)
    with wire.Client(*addresses, topics=["volume"]) as client:
        client.catch_up()
        first.out.publish(wire.Volume(volume=0))
        assert volumes(client, first, 1) == [("01-01-a", 0)]
        first.close()
        second = Session("02-01-b", addresses)
        for index in range(5):  # before the client has found the new daemon
            second.out.publish(wire.Volume(volume=index))
        assert volumes(client, second, 5) == [("02-01-b", index) for index in range(5)]
        second.close()


def test_what_was_published_is_caught_up_in_the_order_of_publishing_whatever_the_clock(session: Session) -> None:
    kinds: list[type[wire.Message]] = [wire.Run, wire.Volume, wire.Beta, wire.Volume, wire.Beta, wire.Run]
    for index, kind in enumerate(kinds):
        session.clock.now = 9_000.0 - 3_600.0 * (index > 2)  # set back an hour
        session.out.publish(kind(volume=index))
    with wire.Client(*addresses_of(session)) as client:
        client.catch_up()
        got = [client.receive(0) for _ in kinds]
    assert [(type(m), m.volume) for m in got if m] == [(kind, index) for index, kind in enumerate(kinds)]


def addresses_of(session: Session) -> tuple[str, str]:
    return session.server.stream, session.server.requests


def test_a_gap_that_cannot_be_filled_now_is_filled_later_and_nothing_raises(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "GAP_TIMEOUT_S", 0.2)
    for index in range(6):
        session.out.publish(wire.Volume(volume=index))
    payloads = session.out.replay("volume", 0)["messages"]
    with wire.Client(*addresses_of(session), topics=["volume"]) as client:
        session.go.clear()
        for index in (0, 5):
            client._came.append(wire.unpack(b"volume", payloads[index]))
        first = client.receive(0.1)
        assert first is not None
        assert first.volume == 0
        assert client.receive(0.1) is None
        session.go.set()
        rest: list[wire.Message] = []
        while len(rest) < 5:
            message = client.receive(0.1)
            rest += [] if message is None else [message]
        assert [m.volume for m in rest] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("away", [False, True])
def test_a_request_that_timed_out_is_not_carried_out_later(addresses: tuple[str, str], away: bool) -> None:
    session = Session("01-01-a", addresses)
    with wire.Client(*addresses, timeout_s=0.5) as client:
        client.ping()
        client.event(kind="run_start", run=1)
        if away:
            session.close()
        else:
            session.go.clear()  # alive, but stopped
        with pytest.raises(TimeoutError):
            client.event(kind="trial", run=1, trial="a", onset_s=1.0, duration_s=1.0)
        if away:
            session = Session("01-01-a", addresses)
            client.ping()
        else:
            time.sleep(0.2)
            session.go.set()
        assert client.event(kind="trial", run=1, trial="b", onset_s=2.0, duration_s=1.0) == ["doubtful"]
        assert [event.trial for event in session.events if event.kind == "trial"] == ["b"]
    session.close()


def test_a_request_that_the_daemon_finds_too_late_has_timed_out(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*request: object) -> None:
        raise wire.RequestError("it came 0.1 s too late", "late")

    with wire.Client(*addresses_of(session), timeout_s=0.0) as client:
        monkeypatch.setattr(client, "_ask", late)
        client._ahead = 0.0
        with pytest.raises(TimeoutError, match="too late"):
            client.event(kind="run_start", run=1)


def test_a_busy_daemon_is_asked_again(session: Session) -> None:
    session.busy = True
    with wire.Client(*addresses_of(session), timeout_s=0.5) as client:
        with pytest.raises(TimeoutError, match="being resumed: 3 of 9"):
            client.event(kind="run_start", run=1)
        threading.Timer(0.2, lambda: setattr(session, "busy", False)).start()
        client.event(kind="run_start", run=1)
    assert len(session.events) == 1


def test_numbers_of_numpy_travel(session: Session) -> None:
    with wire.Client(*addresses_of(session)) as client:
        client.event(
            kind="trial", run=np.int64(2), trial=np.str_("a"), onset_s=np.float32(1.5), duration_s=np.array(2.0)
        )
    (event,) = session.events
    assert (event.run, event.trial, event.onset_s, event.duration_s) == (2, "a", 1.5, 2.0)


def test_malformed_messages_are_counted_and_passed_over(session: Session) -> None:
    with wire.Client(*addresses_of(session), topics=["caption"]) as client:
        while client.receive(0.02) is None:  # until the subscription is through
            session.out.publish(wire.Caption(text="before"))
        good = wire.pack(wire.Caption(session="01-01-a", text="after"))
        values = msgpack.unpackb(good[1])
        for spoilt in ({**values, "v": 2}, {**values, "seq": "1"}, {**values, "session": 5}, {"v": 1}, [1]):
            session.server.send(b"caption", msgpack.packb(spoilt))
        session.server.send(b"caption", b"\xc1")
        session.server.send(b"caption-of-another-kind", good[1])
        session.server.send(*good)
        while (message := client.receive(1.0)) and getattr(message, "text", "") != "after":
            pass
        assert message is not None
        assert client.unreadable == 7


REQUEST = {"v": 1, "id": 1, "request": "ping"}


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb({**REQUEST, "request": "event", "kind": "trial", "run": 1, "trial": "é"}),
        b"\x84\xa1v\x01\xa2id\x01\xa7request\xa5event\xa5trial\xa2\xe9a",  # Latin-1
        msgpack.packb({**REQUEST, "request": "mode", "mode": "decode", "bundle": "a\0b"}),
        msgpack.packb({**REQUEST, "request": "mode", "mode": "decode", "bundle": "some"}),  # the answer fails
        msgpack.packb({**REQUEST, "id": -1}),
        msgpack.packb({**REQUEST, "id": 2**64 - 1}),
        msgpack.packb({**REQUEST, "expires": float("nan")}),
        msgpack.packb({"v": 1, "id": 1, "request": "calibration", "trials": 1, "percentile": float("nan")}),
        msgpack.packb({"v": 1, "id": 1, "request": "calibration", "trials": 1, "interval": [0.5, float("inf")]}),
        msgpack.packb(
            {**REQUEST, "request": "event", "kind": "trial", "run": 1, "trial": "a\n", "onset_s": 1, "duration_s": 1}
        ),
        b"\x91" * 40_000,
        b"",
    ],
)
def test_no_request_ends_the_stream(session: Session, payload: bytes) -> None:
    with wire.Client(*addresses_of(session), timeout_s=5.0) as client:
        dealer = client._dial()
        dealer.send(payload)
        answer = msgpack.unpackb(dealer.recv())
        assert answer["ok"] is (msgpack.packb({**REQUEST, "expires": float("nan")}) == payload)
        client.event(kind="run_start", run=1)
    assert session.server.broken is None


def test_a_stream_that_breaks_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(answer: object) -> None:
        raise RuntimeError("out of sockets")

    monkeypatch.setattr(session.server, "_respond", spoil)
    with wire.Client(*addresses_of(session), timeout_s=0.2) as client, pytest.raises(TimeoutError):
        client.ping()
    assert session.server.broken == "RuntimeError: out of sockets"


def test_answers_that_nobody_fetches_are_bounded_and_others_are_answered(session: Session) -> None:
    for _ in range(4):
        session.out.publish(wire.Reconstruction(image=bytes(2 << 20)))
    context = zmq.Context()
    greedy = context.socket(zmq.DEALER)
    greedy.setsockopt(zmq.RCVHWM, 1)
    greedy.setsockopt(zmq.RCVBUF, 1 << 16)
    greedy.connect(session.server.requests)
    for number in range(200):
        greedy.send(
            msgpack.packb({"v": 1, "id": number, "request": "replay", "topic": "reconstruction", "since_seq": 0})
        )
    with wire.Client(*addresses_of(session)) as client:
        client.event(kind="run_start", run=1)
    while session.answered < 202:  # with the ping and the event of the other
        time.sleep(0.01)
    answers = 0
    while greedy.poll(300):
        greedy.recv()
        answers += 1
    assert 0 < answers <= ANSWERS_WAITING + 16  # those held, and what the sockets' buffers took
    context.destroy(linger=0)


def test_a_client_that_does_not_wait_for_each_answer_gets_them_all(session: Session) -> None:
    context = zmq.Context()
    hasty = context.socket(zmq.DEALER)
    hasty.connect(session.server.requests)
    numbers = range(ANSWERS_WAITING)
    for number in numbers:
        hasty.send(msgpack.packb({"v": 1, "id": number, "request": "ping"}))
    answered = [msgpack.unpackb(hasty.recv())["id"] for _ in numbers if hasty.poll(5_000)]
    context.destroy(linger=0)
    assert answered == list(numbers)


def test_who_asks_for_topics_that_do_not_exist_is_cut_off_and_others_stay(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    with wire.Client(*addresses_of(session), topics=["caption"]) as client:
        while client.receive(0.02) is None:
            session.out.publish(wire.Caption(text="before"))
        context = zmq.Context()
        flood = context.socket(zmq.SUB)
        monitor = flood.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        flood.connect(session.server.stream)
        for number in range(4 * STRANGE_SUBSCRIPTIONS):
            flood.subscribe(f"{number:020d}")
        assert monitor.poll(10_000), "the flood goes on"
        for number in range(3):
            session.out.publish(wire.Caption(text=str(number)))
        texts: list[str] = []
        while texts[-3:] != ["0", "1", "2"]:
            message = client.receive(5.0)
            assert isinstance(message, wire.Caption)
            texts.append(message.text)
        flood.disable_monitor()
        context.destroy(linger=0)
    assert "cut off" in caplog.text


def test_a_huge_frame_at_the_stream_ends_its_connection(session: Session) -> None:
    host, port = session.server.stream.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as peer:
        peer.settimeout(5.0)
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32))  # greeting of ZMTP 3.0
        ready = b"\x05READY" + b"\x0bSocket-Type" + (3).to_bytes(4, "big") + b"SUB"
        peer.sendall(bytes([4, len(ready)]) + ready)
        received = b""
        while b"XPUB" not in received:  # the end of its greeting: what it still holds is lost when it closes
            received += peer.recv(4096)
        peer.sendall(b"\x02" + (SUBSCRIPTION_BYTES + 1).to_bytes(8, "big"))  # a long frame is announced
        with contextlib.suppress(ConnectionResetError):
            while peer.recv(4096):  # a server that waits for the frame's body answers nothing: `TimeoutError`
                pass


def test_many_refusals_make_few_lines(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    with wire.Client(*addresses_of(session)) as client:
        for _ in range(50):
            client._dial().send(b"\xc1")
            client._dial().recv()
    assert session.server.rejected == 50
    assert len([r for r in caplog.records if "refused" in r.message]) == 1


def test_full_paths_stay_off_the_stream(session: Session) -> None:
    session.out.publish(wire.Fault(part="a", reason="'/home/jane.doe/study/x.nii': no such file in /data/s 1/y"))
    session.out.publish(wire.Skipped(path="x", reason="x.nii: expected /1/ of tcp://127.0.0.1:5591/a"))
    said = [wire.unpack(t.encode(), p) for t, p in session.out.snapshot()]
    assert [replace(m, t_published=0.0).reason for m in said if isinstance(m, wire.Fault)] == [
        "'x.nii': no such file in s 1/y"
    ]
    assert [m.reason for m in said if isinstance(m, wire.Skipped)] == ["x.nii: expected /1/ of tcp://127.0.0.1:5591/a"]
