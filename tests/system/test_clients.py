"""Clients that are told nothing, that are called back, and that belong to a loop; on real sockets."""

from __future__ import annotations

import asyncio
import queue
import threading

import pytest

from rtdecode import client as wire
from tests.system.test_sockets import Session, addresses, addresses_of, session  # noqa: F401 - fixtures


def heard(client: wire.Client, session: Session) -> None:  # noqa: F811
    """Publish until the client has received something."""
    while client.receive(0.02) is None:
        session.out.publish(wire.Heartbeat(every_s=0.1))


def test_a_client_that_is_told_nothing_says_so_and_when_it_is_told_again(
    addresses: tuple[str, str],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "SILENT_S", 0.3)
    first = Session("01-01-a", addresses)
    with wire.Client(*addresses, topics=["volume", "heartbeat"]) as client:
        heard(client, first)
        assert client.receive(0.05) is None or not client.silent
        first.out.publish(wire.Volume(volume=0))
        while not isinstance(client.receive(1.0), wire.Volume):
            pass
        first.close()
        while not client.silent:
            client.receive(0.1)
        assert "nothing has come for 0." in caplog.text
        second = Session("01-01-a", addresses)  # the daemon comes back
        second.out.restore([(0, *wire.pack(wire.Volume(session="01-01-a", volume=0, seq=0)))])
        for index in range(1, 30):  # some of them before the connection is made again
            second.out.publish(wire.Volume(volume=index))
        got: list[int | None] = []
        while len(got) < 29:
            message = client.receive(0.05)
            if isinstance(message, wire.Volume):
                got.append(message.volume)
            second.out.publish(wire.Heartbeat(every_s=0.1))
        second.close()
    assert got == list(range(1, 30)), "each message exactly once, in order"
    assert not client.silent
    assert caplog.text.count("nothing has come") == caplog.text.count("messages come again") == 1


def test_heartbeats_that_are_slow_are_waited_for(session: Session) -> None:  # noqa: F811
    with wire.Client(*addresses_of(session), topics=["heartbeat"]) as client:
        while client.receive(0.02) is None:
            session.out.publish(wire.Heartbeat(every_s=50.0))
        client.receive(1.2)
        assert not client.silent


@pytest.fixture
def calls() -> queue.SimpleQueue[object]:
    return queue.SimpleQueue()


def test_a_function_is_called_with_each_message_on_a_thread_of_its_own(
    session: Session,  # noqa: F811
    calls: queue.SimpleQueue[object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wire, "SILENT_S", 0.3)

    def call(message: wire.Message) -> None:
        calls.put((message, threading.current_thread()))
        if getattr(message, "text", "") == "1":
            raise ValueError("the function is wrong")

    with wire.Listener(call, *addresses_of(session), topics=["caption"], silence=calls.put):
        assert calls.get(timeout=60) is True  # silent
        while calls.empty():
            session.out.publish(wire.Caption(text="before"))
            threading.Event().wait(0.02)
        assert calls.get() is False
        for number in range(3):
            session.out.publish(wire.Caption(text=str(number)))
        texts, threads = [], set()
        while texts[-1:] != ["2"]:
            message, thread = calls.get(timeout=60)  # type: ignore[misc]
            texts.append(message.text)
            threads.add(thread)
    assert texts[-3:] == ["0", "1", "2"], "a function that fails is called all the same"
    assert threading.current_thread() not in threads
    assert len(threads) == 1
    assert "the function is wrong" in caplog.text


def test_a_loop_is_not_held_up_by_what_it_asks_and_waits_for(session: Session) -> None:  # noqa: F811
    async def experiment() -> tuple[list[str], list[str], int]:
        turns, over = 0, False

        async def drawing() -> None:
            nonlocal turns
            while not over:
                turns += 1
                await asyncio.sleep(0.005)

        screen = asyncio.ensure_future(drawing())
        async with wire.AsyncClient(*addresses_of(session), topics=["caption"]) as client:
            while await client.receive(0.02) is None:
                session.out.publish(wire.Caption(text="before"))
            session.go.clear()
            asked = asyncio.ensure_future(client.event(kind="run_start", run=1))
            before = turns
            while turns < before + 20:  # the daemon does not answer, and the screen goes on
                await asyncio.sleep(0.005)
            assert not asked.done()
            session.go.set()
            warnings = await asked
            for text in ("a", "b"):
                session.out.publish(wire.Caption(text=text))
            texts = []
            async for message in client.messages():
                texts.append(getattr(message, "text", ""))
                if texts[-1] == "b":
                    break
            with pytest.raises(wire.RequestError, match="nobody foresaw this"):
                await client.request("mode", mode="decode", bundle="b")
        over = True
        await screen
        return warnings, texts[-2:], turns

    warnings, texts, _ = asyncio.run(experiment())
    assert warnings == ["doubtful"]
    assert texts == ["a", "b"]


def test_another_version_of_the_wire_is_refused_with_both_named() -> None:
    topic, payload = wire.pack(wire.Caption(session="s"))
    with pytest.raises(wire.WireError, match="expected version 1 of the wire, got 2"):
        wire.unpack(topic, payload.replace(b"\xa1v\x01", b"\xa1v\x02"))


def test_every_thread_of_a_client_ends(session: Session) -> None:  # noqa: F811
    before = threading.active_count()
    for _ in range(3):
        with wire.Listener(print, *addresses_of(session)):
            pass

        async def visit() -> None:
            async with wire.AsyncClient(*addresses_of(session)) as client:
                await client.request("ping")

        asyncio.run(visit())
    assert threading.active_count() == before
