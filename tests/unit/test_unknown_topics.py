"""A client gets messages of topics that it does not know: numbered, complete, in order."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode.demo.processes import free_port
from rtdecode.publish.publisher import Publisher
from rtdecode.publish.server import Server
from tests.unit.test_wire import answers, publisher

ARRAY = {"dtype": "<f4", "shape": [2, 3], "data": np.arange(6, dtype="<f4").tobytes()}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Publisher]]:
    """A daemon that knows one topic more than the client."""
    for module in ("publisher", "server"):
        monkeypatch.setattr(f"rtdecode.publish.{module}.TOPICS", (*wire.TOPICS, "gaze"))
    server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    out = publisher(server)
    server.start(answers(out))
    yield server, out
    server.close()


def gaze(place: int) -> wire.Other:
    return wire.Other(topic="gaze", run=1, volume=place, fields={"place": place, "at": wire.Array(**ARRAY)})  # type: ignore[arg-type]


def test_it_is_unpacked_with_its_fields_and_arrays() -> None:
    told = {"at": ARRAY, "both": [ARRAY, {"in": ARRAY}], "x": 1}
    payload = msgpack.packb({"v": 1, "topic": "gaze", "session": "s", "seq": 4, "run": 2, **told})
    message = wire.unpack(b"gaze", payload)
    assert isinstance(message, wire.Other)
    assert (message.topic, message.session, message.seq, message.run) == ("gaze", "s", 4, 2)
    assert message.fields.keys() == {"at", "both", "x"}
    wanted = np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (message.fields["at"], message.fields["both"][0], message.fields["both"][1]["in"]):
        np.testing.assert_array_equal(array, wanted)


def test_without_numpy_arrays_stay_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    message = wire.unpack(b"gaze", msgpack.packb({"v": 1, "session": "s", "at": ARRAY}))
    assert isinstance(message, wire.Other)
    assert message.fields["at"] == wire.Array("<f4", (2, 3), ARRAY["data"])


@pytest.mark.parametrize(
    ("topic", "content"),
    [
        (b"Gaze one", {"v": 1, "session": "s"}),
        (b"", {"v": 1, "session": "s"}),
        (b"gaze", {"v": 2, "session": "s"}),
        (b"gaze", {"v": 1, "session": 3}),
        (b"gaze", {"v": 1, "session": "s", "at": {**ARRAY, "shape": [7]}}),
        (b"gaze", {"v": 1, "session": "s", "at": {**ARRAY, "dtype": "O"}}),
    ],
)
def test_what_is_no_message_is_refused(topic: bytes, content: dict[str, object]) -> None:
    with pytest.raises(wire.WireError):
        wire.unpack(topic, msgpack.packb(content))


@pytest.mark.parametrize("topics", [None, ["gaze"]])
def test_it_is_caught_up_with_and_followed(served: tuple[Server, Publisher], topics: list[str] | None) -> None:
    server, out = served
    for place in range(3):
        out.publish(gaze(place))
    with wire.Client(server.stream, server.requests, topics=topics) as client:
        client.catch_up()
        got = [client.receive(0) for _ in range(3)]
        while client.receive(0.02) is None:  # until the subscription is through
            out.publish(gaze(3))
        assert [(m.seq, m.fields["place"]) for m in got] == [(0, 0), (1, 1), (2, 2)]  # type: ignore[union-attr]


@pytest.mark.parametrize("topics", [None, ["gaze"]])
def test_a_gap_of_it_is_filled(served: tuple[Server, Publisher], topics: list[str] | None) -> None:
    server, out = served
    for place in range(5):
        out.publish(gaze(place))
    payloads = out.replay("gaze", 0)["messages"]
    with wire.Client(f"tcp://127.0.0.1:{free_port()}", server.requests, topics=topics) as client:
        client._accept(wire.unpack(b"gaze", payloads[0]))
        client._accept(wire.unpack(b"gaze", payloads[3]))
        client._accept(wire.Heartbeat(session="s-01", last={"gaze": 4}))
        got = [m for m in iter(lambda: client.receive(0), None) if isinstance(m, wire.Other)]
    assert [m.fields["place"] for m in got] == [0, 1, 2, 3, 4]


def test_its_first_message_in_a_new_session_is_not_missed(served: tuple[Server, Publisher]) -> None:
    server, out = served
    with wire.Client(f"tcp://127.0.0.1:{free_port()}", server.requests) as client:
        client._accept(wire.Heartbeat(session="before"))
        client._accept(wire.Heartbeat(session="s-01"))
        for place in range(2):
            out.publish(gaze(place))
        client._accept(wire.unpack(b"gaze", out.replay("gaze", 1)["messages"][0]))
        got = [m for m in iter(lambda: client.receive(0), None) if isinstance(m, wire.Other)]
    assert [m.fields["place"] for m in got] == [0, 1]


def test_a_name_that_nothing_is_published_under(served: tuple[Server, Publisher]) -> None:
    server, out = served
    out.publish(wire.Caption(text="a cat"))
    with wire.Client(f"tcp://127.0.0.1:{free_port()}", server.requests, topics=["capton", "caption"]) as client:
        with pytest.raises(wire.RequestError, match=r"no topic 'capton'; expected one of .*gaze") as told:
            client.catch_up()
        assert told.value.code == "topic"
        client._accept(wire.Heartbeat(session="before"))
        client._accept(wire.Heartbeat(session="s-01"))  # another session: what there is of it is not held back
        message = client.receive(0)
        assert isinstance(message, wire.Caption)


@pytest.mark.parametrize("topics", [[""], ["two words"], ["score", "Score"]])
def test_what_can_be_no_topic_is_refused(topics: list[str]) -> None:
    with pytest.raises(ValueError, match="expected names such as"):
        wire.Client(topics=topics)
