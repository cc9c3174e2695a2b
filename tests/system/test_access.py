"""Keys, roles and strangers, on real sockets."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgpack
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.check import check_client
from rtdecode.publish import connections
from rtdecode.publish.access import new_key, revoke
from tests.keyed import KeyedSession, port_of, tapped

EVENT = {"kind": "run_start", "run": 1}


@pytest.fixture
def session(tmp_path: Path) -> Iterator[KeyedSession]:
    made = KeyedSession(tmp_path)
    yield made
    made.server.close()


def client(session: KeyedSession, name: str, timeout_s: float = 5.0) -> wire.Client:
    return wire.Client(*session.addresses, topics=["caption"], key=session.key(name), timeout_s=timeout_s)


def reaches(what: Callable[[], bool]) -> None:
    """Wait for something that is bound to come; fail after a minute without it."""
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def told(session: KeyedSession, listener: wire.Client) -> None:
    """Publish until the client has received something."""

    def came() -> bool:
        session.out.publish(wire.Caption(text="a cat"))
        return listener.receive(0.05) is not None

    reaches(came)


def test_a_key_that_holds_lets_its_client_in(session: KeyedSession) -> None:
    with client(session, "experiment") as known:
        told(session, known)
        known.event(**EVENT)
    assert [request.kind for request in session.asked if hasattr(request, "kind")] == ["run_start"]


def other_key(session: KeyedSession, folder: Path, *, knows_daemon: bool) -> str:
    """A key of another daemon; its holder may know this daemon's public key, as every client does."""
    path = folder / "other" / "stranger.key"
    path.parent.mkdir()
    new_key(path.parent / "keys.toml", "stranger", "operate", path)
    if knows_daemon:
        servers = [Path(of).read_text().partition('"server": "')[2][:40] for of in (path, session.key("operate"))]
        path.write_text(path.read_text().replace(*servers))
    return str(path)


@pytest.mark.parametrize("who", ["nobody", "a stranger", "of another daemon"])
def test_an_unknown_key_gets_nothing(session: KeyedSession, tmp_path: Path, who: str) -> None:
    key = None if who == "nobody" else other_key(session, tmp_path, knows_daemon=who == "a stranger")
    reason = {"nobody": "ask for a key", "a stranger": "revoked", "of another daemon": "of this daemon"}[who]
    with wire.Client(*session.addresses, key=key, timeout_s=1.0) as stranger, client(session, "observe") as known:
        told(session, known)
        assert stranger.receive(0.3) is None
        with pytest.raises(TimeoutError, match=reason):
            stranger.event(**EVENT)
        told(session, known)
        assert stranger.receive(0.3) is None
    assert not [request for request in session.asked if hasattr(request, "kind")]
    reaches(lambda: session.server.strangers > 0)


def test_a_request_by_a_client_that_was_refused_already_ends_in_time(session: KeyedSession, tmp_path: Path) -> None:
    """Its socket has nowhere to send to any more, and sending would wait for ever."""
    key = other_key(session, tmp_path, knows_daemon=True)
    with wire.Client(*session.addresses, key=key, timeout_s=1.0) as stranger:
        dealer = stranger._dial()
        reaches(lambda: not dealer.poll(0, zmq.POLLOUT))
        with pytest.raises(TimeoutError, match="revoked"):
            stranger.event(**EVENT)
    assert not [request for request in session.asked if hasattr(request, "kind")]


def test_a_revoked_key_is_cut_off_and_others_stay(session: KeyedSession) -> None:
    with client(session, "operate") as doomed, client(session, "observe") as other:
        told(session, doomed)
        told(session, other)
        doomed.event(**EVENT)
        revoke(session.keys, "operate")
        reaches(lambda: not session.server._access or session.server._access.caller("operate").role is None)

        def quiet() -> bool:
            while doomed.receive(0) is not None:
                pass
            for text in ("1", "2", "3"):
                session.out.publish(wire.Caption(text=text))
            told(session, other)
            return doomed.receive(0.05) is None

        reaches(quiet)
        count = len(session.asked)
        with pytest.raises((TimeoutError, wire.RequestError), match=r"revoked|running"):
            doomed.event(**EVENT)
        assert [type(request).__name__ for request in session.asked[count:]].count("Event") == 0
        told(session, other)
    new_key(session.keys, "operate", "observe", session.folder / "again.key")  # the name may be given again
    with client(session, "again") as again:
        told(session, again)
        with pytest.raises(wire.RequestError, match="has the role observe") as refused:
            again.event(**EVENT)
        assert refused.value.code == "role"


def test_a_client_that_comes_before_its_key_holds_is_let_in_once_it_does(session: KeyedSession) -> None:
    before = session.keys.read_text()
    new_key(session.keys, "late", "observe", Path(session.key("late")))
    after = session.keys.read_text()
    session.keys.write_text(before)
    reaches(lambda: session.server._access is not None and session.server._access.caller("late").role is None)
    with client(session, "late") as late:
        strangers = session.server.strangers

        def refused() -> bool:
            late.receive(0.05)
            return session.server.strangers > strangers

        reaches(refused)
        session.keys.write_text(after)
        told(session, late)


@pytest.mark.parametrize(
    ("role", "allowed"),
    [("observe", {"ping"}), ("experiment", {"ping", "event"}), ("operate", {"ping", "event", "mode", "calibration"})],
)
def test_a_role_may_ask_for_what_it_is_for(session: KeyedSession, role: str, allowed: set[str]) -> None:
    asked = {
        "ping": {},
        "event": EVENT,
        "mode": {"mode": "decode", "bundle": "b"},
        "calibration": {"trials": 3},
    }
    refusal = f"the key {role} has the role {role}; .* may be asked by the role"
    with client(session, role) as known:
        for kind, fields in asked.items():
            if kind in allowed:
                known.request(kind, **fields)
            else:
                with pytest.raises(wire.RequestError, match=refusal) as refused:
                    known.request(kind, **fields)
                assert refused.value.code == "role"


def test_captured_bytes_that_are_sent_again_get_nothing(session: KeyedSession) -> None:
    with tapped(port_of(session.server.requests)) as (port, said):
        with wire.Client("", f"tcp://127.0.0.1:{port}", key=session.key("experiment")) as known:
            known.event(**EVENT)
        assert len(said) > 200, "nothing was captured"
    events = [request for request in session.asked if hasattr(request, "kind")]
    assert len(events) == 1
    before = session.server.strangers
    with socket.create_connection(("127.0.0.1", port_of(session.server.requests))) as thief:
        thief.settimeout(60)
        thief.sendall(said)
        answer = b""
        while piece := thief.recv(4096):  # the daemon ends the connection
            answer += piece
    assert b"MESSAGE" not in answer, "an answer within a connection that was let in"
    assert [request for request in session.asked if hasattr(request, "kind")] == events
    reaches(lambda: session.server.strangers > before)


@pytest.mark.parametrize("keyed", [True, False])
def test_random_bytes_on_every_port_are_counted_and_survived(tmp_path: Path, keyed: bool) -> None:
    session = KeyedSession(tmp_path)
    if not keyed:
        session.server.close()
        session.open(None)
    draw = random.Random(3)
    starts = [b"", b"\xff" + bytes(8) + b"\x7f\x03", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"]
    sent = 0
    for address in session.addresses:
        for start in starts:
            for size in (1, 50, 5000):
                with socket.create_connection(("127.0.0.1", port_of(address))) as peer:
                    peer.sendall(start + draw.randbytes(size))
                sent += 1
    key = session.key("experiment") if keyed else None
    with wire.Client(*session.addresses, topics=["caption"], key=key) as known:
        told(session, known)
        known.event(**EVENT)
        reaches(lambda: session.server.strangers >= sent)
    assert session.server.strangers == sent
    assert session.server.broken is None
    session.server.close()


def test_a_stranger_is_counted_though_a_known_client_has_its_descriptor_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What libzmq tells is scripted, as descriptors are given by the system: both changes wait when a request comes."""
    waiting = [{"event": event, "value": 9} for event in (zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED)] * 2
    last = waiting.pop()
    monkeypatch.setattr(connections, "recv_monitor_message", lambda _: waiting.pop(0))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bound:
        askers = connections.Connections(bound)
        bound.disable_monitor()
        askers.monitor.close()
        askers.monitor = SimpleNamespace(poll=lambda _: bool(waiting))
        frame = SimpleNamespace(get=lambda what: 9 if what == zmq.SRCFD else "experiment")
        assert askers.heard(frame) == (9, "experiment")
        askers.look()
        askers.settle()
        assert askers.strangers == 1
        waiting.append(last)
        askers.look()
        askers.settle()
        assert askers.strangers == 1  # the known one went


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["v", "id", "request", "expires", "session"]
FIELDS += ["kind", "run", "trial", "onset_s", "mode", "bundle", "topic", "since_seq"]
ALMOST = st.fixed_dictionaries(
    {"v": st.sampled_from([1, 2, None]), "id": st.integers(0, 9)},
    optional={
        name: st.sampled_from(["event", "mode", "trial", "ping", "replay", 1, 0.5]) | VALUES for name in FIELDS[2:]
    },
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KeyedSession, zmq.Socket[bytes]]]:
    session = KeyedSession(tmp_path_factory.mktemp("fuzzed"))
    key = wire.read_key(session.key("operate"))
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.curve_serverkey = key["server"].encode()
    dealer.curve_publickey, dealer.curve_secretkey = key["public"].encode(), key["secret"].encode()
    dealer.connect(session.server.requests)
    yield session, dealer
    context.destroy(linger=0)
    session.server.close()


@settings(max_examples=300)
@given(payload=st.binary(max_size=80) | VALUES.map(msgpack.packb) | ALMOST.map(msgpack.packb))
def test_whatever_is_asked_is_answered_by_an_error_or_carried_out(
    fuzzed: tuple[KeyedSession, zmq.Socket[bytes]], payload: bytes
) -> None:
    session, dealer = fuzzed
    before = len(session.asked)
    dealer.send(payload)
    assert dealer.poll(60_000), "no answer"
    answer = msgpack.unpackb(dealer.recv())
    assert answer["ok"] is (len(session.asked) > before)
    assert answer["ok"] or answer["error"]
    assert session.server.broken is None


def test_a_client_checks_from_its_machine_what_it_reaches(
    session: KeyedSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session.out.publish(wire.Session(state="running", mode="decode"))
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            session.out.publish(wire.Heartbeat())

    beating = threading.Thread(target=beat)
    beating.start()
    found = {one.subject: one for one in check_client(*session.addresses, session.key("observe"), wait_s=60.0)}
    assert {name for name, one in found.items() if one.problem} == {"clocks"}, "that daemon's clock stands at zero"
    assert found["session"].detail == "01-01-a: running, decode"
    over.set()
    beating.join()
    silent = check_client("tcp://127.0.0.1:1", session.addresses[1], session.key("observe"), wait_s=1.0)
    assert "nothing came within 1 s" in {one.subject: one.problem for one in silent}["stream"]
    (nothing,) = check_client(*session.addresses, None, wait_s=0.5)
    assert "does the daemon ask for a key" in nothing.problem
    where = ["--stream", session.addresses[0], "--requests", session.addresses[1]]
    assert main(["check", "--client", *where, "--key", session.key("observe")]) == 2
    assert "of 4 would fail" in capsys.readouterr().out
