import dataclasses
import threading
import time
import typing
from collections.abc import Callable, Iterable, Iterator

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdecode import client as wire
from rtdecode.demo.processes import free_port
from rtdecode.errors import ProtocolError
from rtdecode.publish import requests
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from tests.conftest import FakeClock

PLAIN = {
    str: st.text(max_size=8),
    int: st.integers(0, 2**31),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
}


def strategy(hint: object) -> st.SearchStrategy[object]:
    if hint in PLAIN:
        return PLAIN[hint]  # type: ignore[index]
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return st.none() | strategy(arguments[0])
    if typing.get_origin(hint) is tuple:
        return st.lists(strategy(arguments[0]), max_size=3).map(tuple)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(strategy(arguments[0]), strategy(arguments[1]), max_size=3)
    assert hint is wire.Array
    return st.just(wire.Array("<f4", (2, 3), np.arange(6, dtype="<f4").tobytes()))


def messages() -> st.SearchStrategy[wire.Message]:
    def build(kind: type[wire.Message]) -> st.SearchStrategy[wire.Message]:
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{f.name: strategy(hints[f.name]) for f in dataclasses.fields(kind)})

    return st.sampled_from(list(wire.TOPICS.values())).flatmap(build)


@given(message=messages())
def test_unpack_undoes_pack(message: wire.Message) -> None:
    assert wire.unpack(*wire.pack(message)) == message


@given(payload=st.binary(max_size=50))
def test_random_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.unpack(b"score", payload)
    with pytest.raises(ProtocolError):
        requests.decode(payload)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"request": "event", "kind": "trial", "run": 1}, "lacks trial, onset_s, duration_s"),
        ({"request": "event", "kind": "trial", "run": 0}, r"run"),
        ({"request": "event", "kind": "trial", "run": 1, "trial": "../x"}, "trial"),
        ({"request": "mode", "mode": "decode"}, "needs a bundle"),
        ({"request": "quit"}, "quit"),
        ({"request": "ping", "more": 1}, "more"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        requests.decode(msgpack.packb({"v": 1, "id": 1, **fields}))


class ListTransport:
    rejected = 0
    strangers = 0
    unsent = 0
    broken = None

    def __init__(self) -> None:
        self.sent: list[wire.Message] = []

    def send(self, topic: bytes, payload: bytes) -> None:
        self.sent.append(wire.unpack(topic, payload))


class ListLog:
    """Keeps messages by their number among all, whatever their topic."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, bytes]] = []

    def output(self, topic: bytes, payload: bytes) -> int:
        self.kept.append((topic, payload))
        return len(self.kept) - 1

    def published(self, places: Iterable[int]) -> Iterator[bytes]:
        return (self.kept[place][1] for place in places)


def publisher(transport: object, log: ListLog | None = None) -> Publisher:
    return Publisher("s-01", FakeClock(), transport, log or ListLog())  # type: ignore[arg-type]


def test_sequence_numbers_have_no_gap_per_topic_and_heartbeats_have_none() -> None:
    transport = ListTransport()
    out = publisher(transport)
    for kind in (wire.Volume, wire.Score, wire.Volume, wire.Heartbeat, wire.Volume, wire.Score):
        out.publish(kind())
    assert [(wire.topic_of(m), m.seq) for m in transport.sent] == [
        ("volume", 0), ("score", 0), ("volume", 1), ("heartbeat", None), ("volume", 2), ("score", 1),
    ]  # fmt: skip
    assert {name for name, _ in out.snapshot()} == {"volume", "score"}


def texts(answer: dict[str, typing.Any]) -> list[str]:
    return [wire.unpack(b"caption", p).text for p in answer["messages"]]  # type: ignore[attr-defined]


def test_replay_is_cut_into_answers_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    out = publisher(ListTransport())
    for i in range(100):
        out.publish(wire.Caption(text=str(i)))
        out.publish(wire.Score())
    answer = out.replay("caption", 98)
    assert (texts(answer), answer["next_seq"], answer["more"]) == (["98", "99"], 100, False)
    assert (texts(out.replay("caption", 500)), out.replay("caption", 500)["more"]) == ([], False)
    monkeypatch.setattr("rtdecode.publish.publisher.REPLAY_BYTES", 2000)
    got: list[str] = []
    answer = {"next_seq": 0, "more": True}
    while answer["more"]:
        answer = out.replay("caption", answer["next_seq"])
        assert 0 < sum(map(len, answer["messages"])) <= 2000
        got += texts(answer)
    assert got == [str(i) for i in range(100)]
    monkeypatch.setattr("rtdecode.publish.publisher.REPLAY_BYTES", 10)
    assert texts(out.replay("caption", 7)) == ["7"]
    with pytest.raises(ProtocolError, match="no topic"):
        out.replay("capton", 0)


def test_a_publisher_that_was_restored_goes_on_and_replays_what_was_before() -> None:
    log = ListLog()
    before = publisher(ListTransport(), log)
    for i in range(3):
        before.publish(wire.Caption(trial=str(i), revision=0, text=str(i)))
        before.publish(wire.Fault())
    transport = ListTransport()
    after = publisher(transport, log)
    after.restore((place, *message) for place, message in enumerate(log.kept[:]))
    assert sorted(after.snapshot()) == sorted(before.snapshot())
    for i in (2, 3):
        after.publish(wire.Caption(trial=str(i), revision=0, text=str(i)))
    assert [(m.seq, m.trial) for m in transport.sent] == [(3, "3")]
    assert texts(after.replay("caption", 1)) == ["1", "2", "3"]


def answers(out: Publisher) -> Callable[[requests.AnyRequest], dict[str, object]]:
    """What a daemon answers that only publishes."""

    def answer(request: requests.AnyRequest) -> dict[str, object]:
        match request:
            case requests.Replay():
                return out.replay(request.topic, request.since_seq)
            case requests.Snapshot():
                return {"messages": out.snapshot()}
            case requests.Ping():
                return {"t_wall": 5.0, "t_mono": time.monotonic()}
        raise ProtocolError("not here")

    return answer


@pytest.fixture
def served() -> Iterator[tuple[Server, Publisher]]:
    server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    out = publisher(server)
    server.start(answers(out))
    yield server, out
    server.close()


def test_client_gets_what_it_missed_before_what_is_new(served: tuple[Server, Publisher]) -> None:
    server, out = served
    for i in range(5):
        out.publish(wire.Caption(text=str(i)))
    with wire.Client(server.stream, server.requests, topics=["caption", "session"]) as client:
        client.catch_up()
        got = [client.receive(0) for _ in range(5)]
        while client.receive(0.02) is None:  # until the subscription is through
            out.publish(wire.Session())
        out.publish(wire.Caption(text="5"))
        message: wire.Message | None = None
        while not isinstance(message, wire.Caption):
            message = client.receive(5.0)
        assert [m.text for m in [*got, message]] == [str(i) for i in range(6)]  # type: ignore[union-attr]
        assert [m.text for m in client.snapshot() if isinstance(m, wire.Caption)] == ["5"]


def test_a_gap_is_filled_in_order(served: tuple[Server, Publisher]) -> None:
    server, out = served
    for i in range(6):
        out.publish(wire.Caption(text=str(i)))
    payloads = out.replay("caption", 0)["messages"]
    with wire.Client(f"tcp://127.0.0.1:{free_port()}", server.requests) as client:
        client._accept(wire.unpack(b"caption", payloads[0]))
        client._accept(wire.unpack(b"caption", payloads[4]))
        client._accept(wire.unpack(b"caption", payloads[3]))
        texts = [client.receive(0).text for _ in range(5)]  # type: ignore[union-attr]
        assert texts == ["0", "1", "2", "3", "4"]
        assert client.receive(0) is None


def test_nothing_is_missed_after_catching_up_with_an_empty_stream(served: tuple[Server, Publisher]) -> None:
    server, out = served
    with wire.Client(server.stream, server.requests, topics=["caption"]) as client:
        client.catch_up()
        for i in range(4):
            out.publish(wire.Caption(text=str(i)))
        client._accept(wire.unpack(b"caption", out.replay("caption", 3)["messages"][0]))
        assert [client.receive(0).text for _ in range(4)] == ["0", "1", "2", "3"]  # type: ignore[union-attr]


def test_a_refused_request_is_answered_and_counted(served: tuple[Server, Publisher]) -> None:
    server, _ = served
    with wire.Client(server.stream, server.requests) as client:
        with pytest.raises(wire.RequestError, match="not here"):
            client.mode("decode", "somewhere")
        with pytest.raises(wire.RequestError, match="lacks"):
            client.event(kind="trial", run=1)
        client._dial().send(b"\xc1")
        with pytest.raises(wire.RequestError, match="not understood"):
            client.ping()
        offset, round_trip = client.ping()
        assert offset < 0 < round_trip
    assert server.rejected == 3


def test_commands_travel_with_a_token_of_their_own_or_a_new_one() -> None:
    asked: list[requests.AnyRequest] = []

    def answer(request: requests.AnyRequest) -> dict[str, object]:
        asked.append(request)
        return {"run": 3, "onset_s": 4.5, "last_run": 4, "t_wall": 0.0, "t_mono": time.monotonic()}

    server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    server.start(answer)
    with wire.Client(server.stream, server.requests) as client:
        for _ in range(2):
            client.control("pause", reason="a pause")
        client.control("feedback", target="cat", threshold=0.5, token="mine")
        assert client.recalibrate(2) == {"run": 3, "onset_s": 4.5, "last_run": 4}
        for wrong in ({"command": "bad_run"}, {"command": "feedback"}, {"command": "pause", "run": 1}):
            with pytest.raises(wire.RequestError, match=r"expected a number for bad_run|feedback needs one of"):
                client.control(**wrong)  # type: ignore[arg-type]
        with pytest.raises(wire.RequestError, match="the command feedback takes them"):
            client.control("stop", target="cat")
        with pytest.raises(wire.RequestError, match="mode calibrate needs a token"):
            client.mode("calibrate")
    server.close()
    first, second, third = (one for one in asked if isinstance(one, requests.Control))
    assert (first.command, first.reason, third.target, third.token) == ("pause", "a pause", "cat", "mine")
    assert first.token != second.token
    (again,) = (one for one in asked if isinstance(one, requests.Mode))
    assert (again.mode, again.runs) == ("calibrate", 2)


def test_a_taken_address_is_named(served: tuple[Server, Publisher]) -> None:
    with pytest.raises(ProtocolError, match="another daemon"):
        Server(served[0].stream, "tcp://127.0.0.1:0")


def test_no_socket_is_closed_while_another_thread_sends_by_it() -> None:
    server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    server.start(lambda request: {})
    closer = threading.Thread(target=server.close)
    with server._wake_lock:  # as a thread does that is in the middle of a wake-up
        closer.start()
        while not server._closing.is_set():
            time.sleep(0.001)
        server._wake_in.send(b"")
        server._thread.join(0.5)  # type: ignore[union-attr]
        assert not server._wake_in.closed
    closer.join(10)
    assert not closer.is_alive()
    assert server._wake_in.closed
    server.send(b"heartbeat", b"")  # of a thread that has not heard: harmless
