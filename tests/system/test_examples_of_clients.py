"""The example of PsychoPy closes a loop with a stand-in of the daemon; the others do with the daemon itself."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtdecode import client as wire
from tests.closing import STEPS, RegulatingSession

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[RegulatingSession]:
    monkeypatch.setitem(sys.modules, "client", wire)
    made = RegulatingSession()
    yield made
    made.close()


def example(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_regulated(session: RegulatingSession) -> None:
    assert [event.kind for event in session.events] == ["run_start", "trial", "trial", "trial", "run_end"]
    assert session.levels == sorted(set(session.levels))
    seen = [event.condition for event in session.events if event.kind == "trial"]
    assert seen == ["seen-0", *(f"seen-{step}" for step in session.steps[:2])]


class FakePsychopy(types.ModuleType):
    """Of PsychoPy it keeps: a clock in seconds that goes on with the 60 frames a second; flips that return with
    the next frame; stimuli that are seen only when drawn before a flip, with the size that they have then; a trigger.

    Attributes
    ----------
    frames : list of list
        What was seen in each frame: ``("text", text)`` or ``("rect", height)``.
    """

    def __init__(self) -> None:
        super().__init__("psychopy")
        self.frames: list[list[tuple[str, object]]] = []
        drawn: list[tuple[str, object]] = []
        frames = self.frames

        class Clock:
            def __init__(self) -> None:
                self._from = len(frames)

            def getTime(self) -> float:  # noqa: N802 - PsychoPy's name
                return (len(frames) - self._from) / 60

        class Window:
            def __init__(self, **_: Any) -> None:
                pass

            def flip(self) -> None:
                time.sleep(0.0005)  # lets the daemon's thread work
                frames.append(drawn.copy())
                drawn.clear()

            def close(self) -> None:
                frames.append([])

        class Rect:
            def __init__(self, _: Window, *, height: float = 0.0, **__: Any) -> None:
                self.height, self.pos = height, (0.0, 0.0)

            def draw(self) -> None:
                drawn.append(("rect", self.height))

        class TextStim:
            def __init__(self, _: Window, *, text: str) -> None:
                self.text = text

            def draw(self) -> None:
                drawn.append(("text", self.text))

        self.core = types.SimpleNamespace(Clock=Clock)
        self.event = types.SimpleNamespace(waitKeys=lambda keyList: keyList[:1])
        self.visual = types.SimpleNamespace(Window=Window, Rect=Rect, TextStim=TextStim)


def test_psychopy_draws_what_it_is_told_and_fixation_otherwise(
    session: RegulatingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = FakePsychopy()
    monkeypatch.setitem(sys.modules, "psychopy", screen)
    waits: list[float] = []
    receive = wire.Client.receive

    def watched(client: wire.Client, timeout_s: float) -> wire.Message | None:
        waits.append(timeout_s)
        return receive(client, timeout_s)

    monkeypatch.setattr(wire.Client, "receive", watched)
    example("psychopy_loop/feedback.py").main(*session.addresses)
    assert_regulated(session)
    assert set(waits) == {0}, "no frame waits for the network"
    assert len(waits) == len(screen.frames) - 1 == 3 * 12 * 60
    levels = [round(float(seen[0][1]) / 0.8 * STEPS) for seen in screen.frames if seen and seen[0][0] == "rect"]  # type: ignore[arg-type]
    assert list(dict.fromkeys(levels)) == session.steps
    assert [seen for seen in screen.frames[:-1] if seen[0] not in {("text", "+"), *(("rect", seen[0][1]),)}] == []
    assert screen.frames[0] == [("text", "+")], "before the first value there is fixation"
