"""What follows the stream goes on, whatever the stream brings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import zmq

from rtdecode import client as wire
from rtdecode.publish.display import follower as watching
from rtdecode.publish.display.follower import Watcher

HEARTBEAT = wire.Heartbeat(session="s")


class Stream:
    """A publisher without a mind of its own; requests are answered only when `answer` is called."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.pub, self.router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        for one in (self.pub, self.router):
            one.setsockopt(zmq.LINGER, 0)
            one.bind("tcp://127.0.0.1:*")
        self.addresses = [one.getsockopt_string(zmq.LAST_ENDPOINT) for one in (self.pub, self.router)]

    def until(self, seen: Callable[[], bool], *messages: wire.Message) -> None:
        """Send messages again and again, and answer nothing, until something is seen."""
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, "not seen"
            for message in messages:
                self.pub.send_multipart(wire.pack(message))
            time.sleep(0.02)

    def answered(self, seen: Callable[[], bool], published: list[wire.Message], beat: wire.Message = HEARTBEAT) -> None:
        """Answer replays with what was published, until something is seen."""

        def reply(asked: dict[str, Any]) -> dict[str, Any]:
            if asked["request"] == "ping":
                return {"t_wall": 0.0, "t_mono": time.monotonic()}
            found = [wire.pack(m)[1] for m in published if wire.topic_of(m) == asked["topic"]]
            left = found[asked["since_seq"] :]
            return {"messages": left, "places": list(range(len(left))), "next_seq": len(found), "more": False}

        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, "not seen"
            self.pub.send_multipart(wire.pack(beat))
            if not self.router.poll(20):
                continue
            identity, payload = self.router.recv_multipart()
            asked = msgpack.unpackb(payload)
            self.router.send_multipart(
                [identity, msgpack.packb({"v": 1, "id": asked["id"], "ok": True, **reply(asked)})]
            )


@pytest.fixture
def stream() -> Iterator[Stream]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield Stream(context)
    context.destroy(linger=0)


@pytest.fixture
def watcher(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    monkeypatch.setattr(watching, "ANSWER_S", 0.1)
    monkeypatch.setattr(watching, "_AGAIN_S", 0.1)
    monkeypatch.setattr(wire, "GAP_TIMEOUT_S", 0.1)
    following = Watcher(*stream.addresses)
    following.start()
    yield following
    following.stop()


def skipped(board_of: Watcher) -> list[str]:
    with board_of.lock:
        return [n["reason"] for n in board_of.board.state()["notices"]["new"] if n["kind"] == "skipped"]


def told(watcher: Watcher, kind: str) -> bool:
    with watcher.lock:
        return watcher.board.notices.is_open("page", kind)


def test_a_request_without_an_answer_is_told_and_asked_again(stream: Stream, watcher: Watcher) -> None:
    stream.until(lambda: told(watcher, "no-answer"), HEARTBEAT)
    assert watcher.board.contact.alive
    published: list[wire.Message] = [
        replace(wire.Skipped(run=1, volume=4, reason="truncated"), session="s", seq=0),
        replace(wire.Session(state="running", mode="decode", participant="07"), session="s", seq=0),
    ]
    stream.answered(lambda: bool(skipped(watcher)) and not told(watcher, "no-answer"), published)
    assert skipped(watcher) == ["run 1, volume 4: truncated"]
    assert watcher.board.state()["session"]["participant"] == "07"


@pytest.mark.parametrize(
    "frames",
    [
        [b"volume", b"\xc1"],
        [b"volume", b""],
        [b"volume", msgpack.packb({"v": 2, "session": "s"})],
        [b"volume", msgpack.packb({"v": 1})],
        [b"volume", msgpack.packb([1, 2])],
        [b"volume"],
        [b"volume", b"a", b"b"],
        [b"volumes", b"\x80"],
        [b"volume", msgpack.packb({"v": 1, "session": "s", "stages": 5, "volume": 1})],
        [b"score", msgpack.packb({"v": 1, "session": "s", "evidence": "much"})],
        [b"reconstruction", msgpack.packb({"v": 1, "session": "s", "image": 10**12})],
        [b"heartbeat", msgpack.packb({"v": 1, "session": 9, "every_s": "x", "t_published": []})],
        [b"run", msgpack.packb({"v": 1, "session": "s", "seq": "x"})],
    ],
)
def test_a_message_that_cannot_be_read_is_counted_and_told_and_the_next_is_shown(
    stream: Stream, watcher: Watcher, frames: list[bytes]
) -> None:
    stream.answered(lambda: watcher.board.contact.alive and watcher.board.session == "s", [])
    stream.pub.send_multipart(frames)
    stream.answered(lambda: told(watcher, "unreadable"), [])
    after = wire.Skipped(session="s", run=2, reason="next", t_published=5.0)
    stream.pub.send_multipart(wire.pack(after))
    stream.answered(lambda: bool(skipped(watcher)), [])
    assert skipped(watcher) == ["run 2: next"]
    assert watcher.unreadable == 1


def test_an_error_of_the_board_is_told_and_logged_once(
    stream: Stream, watcher: Watcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream.answered(lambda: watcher.board.session == "s", [])
    monkeypatch.setattr(watcher.board, "_volume", lambda message: 1 / 0)
    for _ in range(5):
        stream.pub.send_multipart(wire.pack(wire.Volume(session="s", run=1, volume=1)))
    stream.answered(lambda: watcher.unreadable == 5, [])
    assert [r.levelname for r in caplog.records if "division" in r.getMessage()] == ["WARNING"]
    stream.pub.send_multipart(wire.pack(wire.Skipped(session="s", run=2, reason="next")))
    stream.answered(lambda: bool(skipped(watcher)), [])


def test_a_new_session_is_noticed_by_its_heartbeat(stream: Stream, watcher: Watcher) -> None:
    old = replace(wire.Skipped(run=1, reason="a"), session="s", seq=0)
    stream.answered(lambda: watcher.board.session == "s" and bool(skipped(watcher)), [old])
    # While nothing is known of the new session, the old one is not shown as if it lived.
    other = wire.Heartbeat(session="t")
    stream.until(lambda: watcher.board.now()["phase"] == "asking", other)
    stream.answered(lambda: watcher.board.session == "t", [], other)
    assert skipped(watcher) == []
