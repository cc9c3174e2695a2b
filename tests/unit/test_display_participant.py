"""What a participant is shown, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from rtdecode import client as wire
from rtdecode.publish.display.contact import Contact
from rtdecode.publish.display.participant import LATE_S, STAYS_S, ParticipantView
from tests.conftest import FakeClock


class Screen:
    """A view, told by a daemon that lives and whose clock is this machine's."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.contact = clock, Contact(clock.monotonic, clock.wall)
        self.view = ParticipantView(self.contact, clock.monotonic)
        self.beat()

    def beat(self) -> None:
        self.contact.beat(wire.Heartbeat(session="s", t_published=self.clock.wall()))

    def tell(self, kind: type[wire.Message], *, ago_s: float = 0.0, **more: Any) -> dict[str, Any]:
        self.view.apply(kind(session="s", t_published=self.clock.wall() - ago_s, **more))
        return self.view.state()

    def fed(self, step: int | None, state: str = "shown", **more: Any) -> dict[str, Any]:
        return self.tell(wire.Feedback, state=state, step=step, steps=20, **more)

    def decoded(self, trial: str, revision: int = 0, *, supported: bool = True, **more: Any) -> dict[str, Any]:
        head = {"trial": trial, "revision": revision}
        self.tell(wire.Score, **head, supported=supported, **more)
        return self.tell(wire.Reconstruction, **head, image=f"{trial}-{revision}".encode())

    def picture(self) -> bytes | None:
        address = self.view.state()["picture"]
        if address is None:
            return None
        key, number = address.removeprefix("/participant/picture/").split("/")
        return self.view.picture(key, int(number))


@pytest.fixture
def screen(clock: FakeClock) -> Screen:
    return Screen(clock)


def test_there_is_fixation_until_something_may_be_shown(screen: Screen) -> None:
    assert screen.view.state() == {"thermometer": None, "picture": None, "alive": True}
    assert screen.fed(None, "baseline")["thermometer"] is None
    assert screen.fed(None, "held")["thermometer"] is None
    assert screen.fed(7)["thermometer"] == {"step": 7, "steps": 20, "held": False}
    assert screen.fed(None, "held")["thermometer"] == {"step": 7, "steps": 20, "held": True}
    assert screen.fed(9)["thermometer"] == {"step": 9, "steps": 20, "held": False}
    assert screen.fed(None, "baseline")["thermometer"] is None


def test_a_picture_is_shown_only_where_its_own_score_supports_it(screen: Screen) -> None:
    screen.decoded("a", supported=False)
    assert screen.picture() is None
    screen.decoded("a", 1)
    assert screen.picture() == b"a-1"
    screen.tell(wire.Score, trial="a", revision=2, supported=True)
    assert screen.picture() == b"a-1", "of the same trial, until its own comes"
    screen.tell(wire.Reconstruction, trial="a", revision=1, image=b"again")
    assert screen.picture() == b"a-1", "an older revision changes nothing"
    screen.tell(wire.Score, trial="b", revision=0, supported=True)
    assert screen.picture() is None, "another trial's picture is an old one"
    screen.decoded("b")
    screen.tell(wire.Score, trial="b", revision=1, supported=False)
    assert screen.picture() is None
    screen.decoded("c", invalid="no volume came")
    assert screen.picture() is None


def test_what_comes_late_is_not_shown(screen: Screen) -> None:
    assert screen.fed(7, ago_s=LATE_S + 0.1)["thermometer"] is None
    screen.decoded("a", ago_s=LATE_S + 0.1)
    assert screen.picture() is None
    screen.tell(wire.Score, trial="b", revision=0, supported=True)
    screen.tell(wire.Reconstruction, trial="b", revision=0, image=b"b", ago_s=LATE_S + 0.1)
    assert screen.picture() is None


def test_nothing_stays_where_nothing_new_comes_or_the_daemon_is_gone(screen: Screen) -> None:
    screen.fed(7)
    screen.decoded("a")
    for _ in range(int(STAYS_S) - 1):
        screen.clock.now += 1.0
        screen.beat()
    assert screen.view.state()["thermometer"] is not None
    assert screen.picture() == b"a-0"
    screen.clock.now += 2.0
    screen.beat()
    assert screen.view.state() == {"thermometer": None, "picture": None, "alive": True}
    screen.fed(7)
    screen.clock.now += 5.0  # without a heartbeat
    assert screen.view.state() == {"thermometer": None, "picture": None, "alive": False}


@pytest.mark.parametrize("what", ["run", "session"])
def test_a_new_run_or_session_begins_with_fixation(screen: Screen, what: str) -> None:
    screen.fed(7)
    screen.decoded("a")
    address = screen.view.state()["picture"]
    if what == "run":
        screen.tell(wire.Run, state="ended", run=1)
    else:
        screen.view.apply(wire.Volume(session="another", t_published=screen.clock.wall()))
    assert screen.view.state() == {"thermometer": None, "picture": None, "alive": True}
    key, number = address.removeprefix("/participant/picture/").split("/")
    assert screen.view.picture(key, int(number)) is None
