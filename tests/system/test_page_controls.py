"""The operator's commands from the page to a daemon's judge and back, in words."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtdecode import client as wire
from rtdecode.errors import AnotherSession, ProtocolError
from rtdecode.publish import requests
from rtdecode.publish.display import steering as asking
from rtdecode.publish.display.steering import Steering
from rtdecode.publish.server import Server
from rtdecode.session.run_state import Progress
from rtdecode.session.steering import Steering as Judge
from rtdecode.settings import parse
from tests.keyed import KeyedSession
from tests.page import Page, Told, served
from tests.system.test_page import reaches, run, session, settled, volume

pytestmark = pytest.mark.system

ENTER, ESCAPE, SHIFT, TAB, BACKWARDS = "\ue007", "\ue00c", "\ue008", "\ue004", "shift and tab"


class JudgingSession:
    """What a daemon is to its operator: commands are judged as a session does, 20 s into run 3, and kept."""

    def __init__(self, folder: Path, told: Told) -> None:
        raw: dict[str, Any] = {
            "session": {"participant": "01", "output": "."},
            "scanner": {"export_dir": "."},
            "calibration": {"runs": 2},
            "feedback": {"score": "category", "target": "cat"},
        }
        self.judge = Judge(parse(raw, root=folder))
        self.asked: list[requests.AnyRequest] = []
        self.at = "01-01"
        self.held = threading.Event()
        self.held.set()
        self._told = told
        self.server = Server("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
        self.server.start(self.answer)

    def answer(self, asked: requests.AnyRequest) -> dict[str, Any]:
        if isinstance(asked, requests.Ping):
            return {"t_wall": time.time(), "t_mono": time.monotonic()}
        self.held.wait(60)
        if asked.session != self.at:
            raise AnotherSession(f"the request is meant for session {asked.session}, this is {self.at}")
        self.asked.append(asked)
        progress = Progress(closed=2, run=3, volumes=10, scanned_s=20.0)
        kind = "recalibrate" if isinstance(asked, requests.Mode) else getattr(asked, "command", "")
        before = self.judge.answered(getattr(asked, "token", None), kind)
        if before is not None:
            return before
        if isinstance(asked, requests.Control):
            answer = self.judge.take(self.judge.judge(asked, progress, ("cat", "dog")))
        elif isinstance(asked, requests.Mode):
            answer = self.judge.take(self.judge.judge_recalibration(asked, progress))
        else:
            raise ProtocolError("not here")
        self._told.tell(session(self.at, paused=self.judge.paused, bad_runs=tuple(self.judge.bad_runs)))
        return answer


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def daemon(told: Told, tmp_path: Path) -> Iterator[JudgingSession]:
    made = JudgingSession(tmp_path, told)
    told.steering = Steering(made.server.requests)
    yield made
    made.held.set()
    made.server.close()


def alive(told: Told) -> None:
    """Let the page have contact for a minute."""
    told.tell(wire.Heartbeat(session="01-01", every_s=20.0), session(), run(3), volume(9))


@pytest.fixture
def page(browser: Any, told: Told, daemon: JudgingSession) -> Iterator[Any]:
    assert daemon.asked == []
    alive(told)
    told.tell(wire.Feedback(session="01-01", score="category", target="cat", threshold=0.3, steps=20))
    with served(told) as address:
        browser.get(address)
        settled(browser, says="decoding")
        yield browser
        browser.get("about:blank")


def press(page: Any, *keys: str) -> None:
    """Press keys one after another, wherever the focus is."""
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        chain = ActionChains(page)
        (chain.key_down(SHIFT).send_keys(TAB).key_up(SHIFT) if key == BACKWARDS else chain.send_keys(key)).perform()


def outcome(page: Any, wanted: str) -> None:
    reaches(page, f"document.getElementById('outcome').textContent.includes({wanted!r})")


def commands(daemon: JudgingSession) -> list[dict[str, Any]]:
    """Return what was asked so far, without what was not given and the tokens, and forget it."""
    named = [{name: getattr(one, name) for name in one.__struct_fields__} for one in daemon.asked]
    daemon.asked.clear()
    left_out = ("v", "id", "expires", "session", "token")
    return [{k: v for k, v in one.items() if v not in (None, "") and k not in left_out} for one in named]


def test_every_command_is_confirmed_and_answered_by_keys_alone(page: Any, daemon: JudgingSession) -> None:
    press(page, "p")
    settled(page, **{"confirm-says": "Pause decoding?", "confirm-yes": "Pause decoding"})
    press(page, ESCAPE)
    reaches(page, "document.getElementById('controls').open", wanted=False)
    assert daemon.asked == []  # nothing without a confirmation
    press(page, "p", BACKWARDS, "coughs", ENTER)
    outcome(page, "Decoding is paused.")
    assert commands(daemon) == [{"command": "pause", "reason": "coughs"}]
    settled(page, says="decoding is paused", does="· decoding")
    press(page, "p")
    settled(page, **{"confirm-says": "Resume decoding?"})
    press(page, ENTER)
    outcome(page, "Decoding goes on.")
    settled(page, says="decoding")
    press(page, "b", ENTER)
    outcome(page, "Run 3 is marked as bad.")
    settled(page, flags="bad run")
    press(page, "f", "dog", TAB, "0.5", ENTER)
    outcome(page, "Feedback: target dog, threshold 0.5.")
    press(page, "r", "2", ENTER)
    outcome(page, "Trials calibrate from run 3, 20 s on, to the end of run 4.")
    press(page, "e", ENTER)
    outcome(page, "The session is ending.")
    assert commands(daemon) == [
        {"command": "resume"},
        {"command": "bad_run", "run": 3},
        {"command": "feedback", "target": "dog", "threshold": 0.5},
        {"mode": "calibrate", "runs": 2},
        {"command": "stop"},
    ]
    assert page.get_log("browser") == []


def test_a_session_can_be_steered_before_its_first_run(browser: Any, told: Told, daemon: JudgingSession) -> None:
    told.tell(wire.Heartbeat(session="01-01", every_s=20.0), session())
    with served(told) as address:
        browser.get(address)
        settled(browser, says="waiting for the first volume")
        press(browser, "p", ENTER)
        outcome(browser, "Decoding is paused.")
        press(browser, "e", ENTER)
        outcome(browser, "The session is ending.")
    assert commands(daemon) == [{"command": "pause"}, {"command": "stop"}]


def test_a_refusal_is_told_in_the_words_of_the_daemon(page: Any, daemon: JudgingSession) -> None:
    press(page, "f", "bird", ENTER)
    outcome(page, "Refused: target: expected a category of the decoder (cat, dog), got 'bird'")
    press(page, ESCAPE, "b", "9", ENTER)
    outcome(page, "Refused: run 9: expected one that has begun, 1 to 3")
    assert [one.get("run") for one in commands(daemon)] == [None, 9]


def test_what_is_confirmed_after_the_next_session_began_is_refused(
    page: Any, daemon: JudgingSession, told: Told
) -> None:
    press(page, "e")
    settled(page, **{"confirm-says": "Stop the session?"})
    daemon.at = "02-01"
    told.tell(wire.Heartbeat(session="02-01", every_s=20.0), session("02-01", participant="02"))
    reaches(page, "document.getElementById('participant').textContent.includes('participant 02')")
    press(page, ENTER)
    outcome(page, "Refused: the request is meant for session 01-01, this is 02-01")
    assert daemon.asked == []
    press(page, ESCAPE, "p", ENTER)
    outcome(page, "Decoding is paused.")
    assert commands(daemon) == [{"command": "pause"}]


def test_a_command_without_an_answer_may_be_asked_again_and_is_carried_out_once(
    page: Any, daemon: JudgingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 0.5)
    daemon.held.clear()
    press(page, "b", ENTER)
    outcome(page, "It may have been carried out. Asking again is safe")
    daemon.held.set()
    press(page, ENTER)
    outcome(page, "Run 3 is marked as bad.")
    assert len({one.token for one in daemon.asked if isinstance(one, requests.Control)}) == 1


def test_what_makes_no_sense_cannot_be_chosen_and_typing_is_no_command(page: Any, daemon: JudgingSession) -> None:
    press(page, "c")
    enabled = "[...document.querySelectorAll('#commands button:enabled')].map(b => b.dataset.command).join()"
    reaches(page, enabled, "pause,bad_run,recalibrate,feedback,stop")
    press(page, "b", TAB, "pebpt")
    reaches(page, "document.getElementById('reason').value", "pebpt")
    assert daemon.asked == []
    labels = (
        "[...document.querySelectorAll('input')].every(i => i.labels.length === 1 && i.labels[0].textContent.trim())"
    )
    assert page.execute_script(f"return {labels}")
    shown = page.execute_script("return [...document.querySelectorAll('.keys kbd')].map(k => k.textContent)")
    assert shown == ["c", "p", "b", "r", "f", "e", "a", "t", "Esc"]


def test_focus_is_seen(page: Any, told: Told) -> None:
    told.tell(wire.Fault(session="01-01", part="disk", kind="low", reason="full"))
    settled(page, says="fault")
    names = []
    for _ in range(3):
        press(page, TAB)
        style = "getComputedStyle(document.activeElement)"
        names.append(page.execute_script("return document.activeElement.id || document.activeElement.textContent"))
        assert page.execute_script(f"return [{style}.outlineStyle, {style}.outlineWidth]") == ["solid", "3px"]
    assert names == ["open-controls", "theme", "Acknowledge"]
    press(page, "a")
    settled(page, says="decoding")


@pytest.mark.parametrize("role", ["observe", "experiment"])
def test_a_page_with_a_lesser_key_only_watches_and_says_so(browser: Any, told: Told, tmp_path: Path, role: str) -> None:
    keyed = KeyedSession(tmp_path)
    told.steering = Steering(keyed.server.requests, keyed.key(role))
    alive(told)
    with served(told) as address:
        browser.get(address)
        settled(browser, says="decoding")
        press(browser, "c")
        reaches(browser, "document.getElementById('controls').open")
        assert f"its key {role} has the role {role}" in browser.find_element("id", "controls-who").text
        assert not browser.find_element("id", "commands").is_displayed()
        press(browser, "p")
        assert not browser.find_element("id", "confirm").is_displayed()
        browser.get("about:blank")
        with Page(address) as page:  # nor does its server take what another program says
            answer = page.ask("control", command="pause", token="t")
    assert (answer["ok"], answer["code"]) == (False, "role")
    assert keyed.asked == []
    keyed.server.close()


def test_a_page_with_the_key_of_an_operator_steers(told: Told, tmp_path: Path) -> None:
    keyed = KeyedSession(tmp_path)
    told.steering = Steering(keyed.server.requests, keyed.key("operate"))
    with served(told) as address, Page(address) as page:
        page.follow()
        assert page.now["operator"] == ["operate", "operate"]
        assert page.ask("control", command="pause", token="t")["ok"]
        assert "expected one of control, mode" in page.ask("event", kind="run_start", run=1)["error"]
        assert "request not understood" in page.ask("control", command="explode", token="t")["error"]
    assert [type(one) for one in keyed.asked if not isinstance(one, requests.Ping)] == [requests.Control]
    keyed.server.close()


def test_a_key_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "no.key").write_text("{}")
    with pytest.raises(ProtocolError, match="expected a client's file of `rtdecode keys new`"):
        Steering("tcp://127.0.0.1:1", str(tmp_path / "no.key"))
