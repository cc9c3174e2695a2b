"""The page in a browser, over a session told message by message."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from rtdecode import client as wire
from tests.page import Told, served

pytestmark = pytest.mark.system

ALIVE = wire.Heartbeat(session="01-01", every_s=20.0)  # for a minute


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def page(browser: Any, told: Told) -> Iterator[Any]:
    """The open page of a daemon that lives."""
    told.tell(ALIVE)
    with served(told) as address:
        browser.get(address)
        yield browser
        browser.get("about:blank")


def webp(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + grey, 8), (grey, grey, grey)).save(buffer, "webp", lossless=True)
    return buffer.getvalue()


def head(trial: str, revision: int, *, final: bool = False) -> dict[str, Any]:
    return {"run": 3, "trial": trial, "revision": revision, "final": final, "stages": {"total": 40.0}}


def score(trial: str, revision: int, *, final: bool = False, evidence: float = 0.8, **more: Any) -> wire.Score:
    told = {"supported": True, "p_content": 0.02, "p_motion": 0.5, "plausible": ("cat",), "null": "null trials", **more}
    return wire.Score(
        **head(trial, revision, final=final), predicted="cat", condition="cat", evidence=evidence, chance=0.125,
        rank=2, pool=80, **told,
    )  # fmt: skip


def settled(browser: Any, **wanted: str) -> None:
    """Wait until the page shows these texts, and has drawn the rest, a frame later; fail with what it shows instead."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.wait import WebDriverWait

    script = "return Object.fromEntries(arguments[0].map(id => [id, document.getElementById(id).textContent.trim()]))"
    try:
        WebDriverWait(browser, 30, 0.05).until(lambda b: b.execute_script(script, list(wanted)) == wanted)
    except TimeoutException:
        assert browser.execute_script(script, list(wanted)) == wanted
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def wait_for_picture(browser: Any, width: int) -> None:
    """Wait until the picture that is `width` pixels wide is on the page."""
    from selenium.webdriver.support.wait import WebDriverWait

    script = "const p = document.getElementById('picture'); return !p.hidden && p.complete && p.naturalWidth"
    WebDriverWait(browser, 30, 0.05).until(lambda b: b.execute_script(script) == width)


def body(browser: Any, name: str) -> str:
    return str(browser.execute_script("return document.body.dataset[arguments[0]] || ''", name))


def reaches(browser: Any, script: str, wanted: object = True) -> None:
    """Wait until a script of the page returns what is wanted."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 30, 0.05).until(lambda b: b.execute_script(f"return {script}") == wanted, script)


def session(session: str = "01-01", **more: Any) -> wire.Session:
    told = {"state": "running", "mode": "decode", "participant": "01", "pack": "tiny", "calibration_runs": 2, **more}
    return wire.Session(session=session, categories=("cat", "dog"), censor_fd_mm=0.9, **told)


def run(number: int, state: str = "started", session: str = "01-01") -> wire.Run:
    return wire.Run(session=session, run=number, state=state, expected=40)


def volume(index: int, **more: Any) -> wire.Volume:
    return wire.Volume(
        run=1, volume=index, motion=(0.1,) * 6, fd_mm=0.25, tsnr=80.0, stages={"total": 20.0}, t_published=9.0, **more
    )


def test_the_page_follows_a_session(page: Any, told: Told) -> None:
    told.tell(session(mode="calibrate"))
    settled(page, says="waiting for the first volume", participant="participant 01 · tiny pack")
    told.tell(run(1), volume(9, regions={"ffa": 0.5}))
    settled(page, says="calibrating", run="run 1 of 2", volume="10 / 40", fd="0.25 · limit 0.9 mm")
    for number in range(3):
        told.tell(wire.Beta(run=1, trial=f"c{number}", final=True, onset_s=number, condition="cat"))
    told.tell(wire.Calibration(trials=10, percentile=0.7, interval=(0.4, 0.9)))
    settled(
        page, counts="cat3dog0", collected="· 3", rank="70%", **{"rank-note": "percentile rank [40%, 90%], chance 50%"},
        **{"calibration-shown": "last shown: cat", "calibration-name": "cat"},
    )  # fmt: skip
    told.tell(run(2, "ended"))
    settled(page, says="fitting the decoder", run="run 2 of 2 done")
    told.tell(run(3))
    settled(page, says="fitting the decoder", run="run 3")

    told.tell(session())
    told.tell(
        score("t1", 0), wire.Caption(**head("t1", 0), text="a cat"), wire.Reconstruction(**head("t1", 0), image=webp(1))
    )
    settled(page, says="decoding", run="run 3", caption="a cat", revision="· revision 0", evidence="cat, 80% sure")
    wait_for_picture(page, 9)

    told.tell(score("t1", 1, final=True), wire.Caption(**head("t1", 1, final=True), text="a grey cat"))
    # The new words stand beside the old picture until its own revision is drawn.
    settled(page, caption="a grey cat", revision="· revision 0", tally="· 1 of 1 categories right")
    told.tell(wire.Reconstruction(**head("t1", 1, final=True), image=webp(2)))
    settled(page, revision="· revision 1, final")
    wait_for_picture(page, 10)
    told.tell(session(state="ending"))
    settled(page, says="ending the session")
    told.tell(session(state="ended"))
    settled(page, says="session ended")
    assert page.get_log("browser") == []


def note(page: Any) -> str:
    return str(page.find_element("id", "evidence-note").text)


def test_what_is_not_supported_is_dimmed_and_says_why(page: Any, told: Told) -> None:
    told.tell(session(), run(3), score("t1", 0, plausible=("cat", "dog"), claim=3.456))
    settled(page, evidence="cat, 80% sure")
    assert "weak" not in page.find_element("id", "decoding").get_attribute("class")
    assert "this often: 2%) · one of these 9 times in 10: cat, dog · session evidence 3.5 of 20" in note(page)
    told.tell(
        score("t2", 0, supported=False, refused="no picture was found in the response", p_content=0.4, claim=20.0)
    )
    settled(page, evidence="not supported: no picture was found in the response")
    assert "weak" in page.find_element("id", "decoding").get_attribute("class")
    assert "this often: 40%)" in note(page)
    assert "session evidence 20 (it decodes)" in note(page)
    told.tell(score("t3", 0, supported=False, refused="the response is an outlier", p_motion=0.005, plausible=()))
    settled(page, evidence="not supported: the response is an outlier")
    assert "9 times in 10" not in note(page)
    assert "session evidence" not in note(page)
    told.tell(wire.Score(**head("t4", 0), predicted="cat", evidence=0.8, chance=0.125))  # of an older daemon
    settled(page, evidence="not supported")
    sure = [row.find_element("css selector", ".sure").text for row in page.find_elements("css selector", "#list li")]
    assert sure == ["–", "–", "–", "80%"]
    assert page.get_log("browser") == []


def test_what_a_supported_trial_leaves_unknown_is_told(page: Any, told: Told) -> None:
    known, guess = score("t1", 0), score("t2", 0, unknown=("category", "spatial"))
    told.tell(session(), run(3), known, wire.Caption(**head("t1", 0), text="a black cat"))
    settled(page, evidence="cat, 80% sure", caption="a black cat")
    assert "not supported" not in note(page)
    told.tell(guess, wire.Caption(**head("t2", 0), text="a black cat"))
    settled(page, evidence="category unknown, best guess cat, 80% sure", caption="best guess: a black cat")
    assert "weak" not in page.find_element("id", "decoding").get_attribute("class")
    assert " · not supported by the response: spatial · one of these" in note(page)
    names = [row.find_element("css selector", ".name b").text for row in page.find_elements("css selector", "#list li")]
    assert names == ["✓ cat?", "✓ cat"]
    assert page.get_log("browser") == []


def test_each_revision_stands_in_its_trials_row(page: Any, told: Told) -> None:
    told.tell(ALIVE, session(), run(3), score("t1", 0, supported=False), score("t1", 1, evidence=0.6), score("t1", 2))
    told.tell(score("t2", 0))
    row = "[...document.querySelectorAll('#list li')].map(li => li.querySelector('.revisions').textContent)"
    reaches(page, row, ["cat 80%", "cat –→ 60%→ 80%"])
    title = page.find_elements("css selector", "#list li")[1].find_elements("css selector", ".revisions span")[0]
    assert title.get_attribute("title") == "revision 0: cat, not supported"


def test_states_of_the_session_are_told_in_words(page: Any, told: Told) -> None:
    told.tell(ALIVE, session(paused=True, bad_runs=(1, 3)), run(3), volume(9, lag=4))
    settled(page, says="decoding is paused", does="· decoding", flags="bad run4 volumes behind")
    assert body(page, "lamp") == "trouble"
    told.tell(run(3, "ended"))  # its last volume waited for nothing but that
    settled(page, flags="bad run")
    told.tell(
        wire.Feedback(session="01-01", score="region", regions=("ffa",), state="shown", value=0.456, step=3, steps=20)
    )
    reaches(
        page, "document.getElementById('figures').textContent.includes('feedback region of ffa: step 3 of 20 (0.46)')"
    )
    told.tell(session(bad_runs=(1,)), run(4), volume(0))
    settled(page, says="decoding", flags="")
    told.tell(wire.Fault(part="acquire", kind="no-volume", reason="none for 4 s", remedy="look at the scanner"))
    reaches(page, "/^no volume for \\d+ s$/.test(document.getElementById('says').textContent)")
    assert page.title.startswith("no volume for ")


@pytest.mark.parametrize("asked", ["dark", "light"])
def test_the_theme_follows_the_browser_until_it_is_switched_and_is_remembered(
    page: Any, told: Told, asked: str
) -> None:
    other = "light" if asked == "dark" else "dark"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": asked}]})
    told.tell(ALIVE, session(), run(3), *(volume(index) for index in range(20)))
    grounds = {"dark": "rgb(16, 20, 26)", "light": "rgb(223, 228, 234)"}
    ground = "getComputedStyle(document.body).backgroundColor"
    reaches(page, ground, grounds[asked])

    def drawn(theme: str) -> str:
        """Return a script that tells whether the line of z, which lies on the others here, is in a theme's colour."""
        line = {"dark": "224,95,180", "light": "125,31,102"}[theme]
        pixels = "[...document.getElementById('translation').getContext('2d').getImageData(0, 0, 400, 84).data]"
        return f"{pixels}.some((v, i, all) => i % 4 === 0 && `${{v}},${{all[i + 1]}},${{all[i + 2]}}` === '{line}')"

    reaches(page, drawn(asked))
    page.find_element("id", "theme").click()
    reaches(page, ground, grounds[other])
    reaches(page, drawn(other))
    page.refresh()
    reaches(page, ground, grounds[other])
    page.execute_script("localStorage.clear()")


def test_words_of_the_stream_stay_words(page: Any, told: Told) -> None:
    told.tell(
        session(),
        run(3),
        score("t1", 0),
        score("<img src=x onerror=alert(1)>", 0, supported=False, plausible=("<b>cat</b>",)),
    )
    told.tell(wire.Fault(part="<b>disk</b>", reason="<script>alert(1)</script>"))
    settled(page, evidence="not supported")
    assert "<b>cat</b>" in note(page)
    assert "weak" in page.find_element("id", "decoding").get_attribute("class")
    rows = page.find_elements("css selector", "#list li")
    assert "<img src=x onerror=alert(1)>" in rows[0].text
    assert [len(row.find_elements("css selector", ".thumb")) for row in rows] == [1, 1]
    reaches(page, "document.querySelectorAll('main script, #notices script, #notices li b b').length", 0)
    told.tell(score("t3", 0))
    settled(page, evidence="cat, 80% sure")
    assert "weak" not in page.find_element("id", "decoding").get_attribute("class")
    assert page.get_log("browser") == []


def test_a_dead_daemon_makes_the_whole_page_stale_and_a_reload_does_not_revive_it(page: Any, told: Told) -> None:
    told.tell(wire.Heartbeat(session="01-01"), session(), run(3), score("t1", 0))
    settled(page, says="decoding", evidence="cat, 80% sure")
    assert body(page, "lamp") == "good"
    opacity = "parseFloat(getComputedStyle(document.querySelector('main')).opacity)"
    reaches(page, opacity, 1)
    reaches(page, f"{opacity} < 0.5")  # no more heartbeats came
    assert body(page, "lamp") == "lost"
    banner = page.find_element("id", "banner")
    assert banner.is_displayed()
    assert re.match(r"No contact with the daemon since \d\d:\d\d:\d\d \(\d+ s\)", banner.text)
    page.refresh()
    page.execute_script(
        "window.lamps = new Set(); setInterval(() => lamps.add(document.body.dataset.lamp || 'none'), 10)"
    )
    reaches(page, "document.getElementById('says').textContent", "no contact")
    assert not page.execute_script("return lamps.has('good')")
    told.tell(wire.Heartbeat(session="01-01"))
    settled(page, says="decoding")
    assert not banner_shown(page)


def banner_shown(browser: Any) -> bool:
    return bool(browser.find_element("id", "banner").is_displayed())


def test_a_page_that_loses_its_server_says_so(browser: Any, told: Told) -> None:
    told.tell(wire.Heartbeat(session="01-01"), session(), run(3), score("t1", 0))
    with served(told) as address:
        browser.get(address)
        settled(browser, says="decoding")
    settled(browser, says="no contact with the page's server")
    assert "stale" in browser.find_element("tag name", "body").get_attribute("class")


def test_a_new_session_leaves_nothing_in_an_open_page(page: Any, told: Told) -> None:
    told.tell(session(), run(3), volume(3), score("t1", 0), wire.Reconstruction(**head("t1", 0), image=webp(1)))
    told.tell(wire.Fault(part="disk", reason="full"))
    wait_for_picture(page, 9)
    told.tell(wire.Heartbeat(session="02-01"))
    settled(page, says="daemon found, asking for the session", notices="", list="", participant="", run="", volume="")
    told.tell(session("02-01", participant="02"), run(3, session="02-01"), score("t1", 0))
    settled(page, participant="participant 02 · tiny pack", says="decoding")
    reaches(page, "document.getElementById('picture').hidden")
    told.tell(wire.Reconstruction(**head("t1", 0), image=webp(2)))  # of the same name as the first one
    wait_for_picture(page, 10)


def test_a_fault_is_on_top_until_acknowledged_or_over(page: Any, told: Told) -> None:
    told.tell(session(), run(3), score("t1", 0))
    for _ in range(2):
        told.tell(wire.Fault(part="decode", kind="worker", reason="gone", remedy="look at the log", t_published=5.0))
    told.tell(wire.Skipped(run=3, volume=7, reason="truncated"))
    settled(page, says="fault", does="· decoding")
    first = page.find_elements("css selector", "#notices li")[0]
    for words in ("decode: gone", "2 times", "look at the log"):
        assert words in first.text
    assert first.rect["y"] + first.rect["height"] < page.find_element("tag name", "main").rect["y"] + 1
    assert re.search(r"\d\d:\d\d:\d\d", first.text)
    first.find_element("tag name", "button").click()
    settled(page, says="decoding")
    assert ["truncated" in row.text for row in page.find_elements("css selector", "#notices li")] == [True]
    settled(page, **{"earlier-count": "1 known"})
    told.tell(wire.Fault(part="decode", kind="worker", reason="gone again"))
    settled(page, says="fault")
    told.tell(wire.Fault(part="decode", kind="worker", over=True))
    settled(page, says="decoding")
    told.tell(wire.Fault(part="acquire", kind="no-volume", reason="none for 4 s"))
    reaches(page, "document.body.dataset.phase", "no-volume")


@pytest.mark.parametrize("size", [(1280, 800), (1024, 768)])
@pytest.mark.parametrize("view", ["calibrate", "decode"])
def test_what_matters_is_seen_without_scrolling(page: Any, told: Told, size: tuple[int, int], view: str) -> None:
    width, height = size
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    told.tell(session(mode=view), run(1), *(volume(i, regions={"ffa": 0.5, "ppa": -1.0}) for i in range(60)))
    told.tell(*(wire.Fault(part=f"part {i}", reason="x" * 200, remedy="y" * 100) for i in range(6)))
    told.tell(wire.Beta(run=1, trial="c", final=True, stimulus="cat01", condition="cat"))
    told.tell(wire.Calibration(trials=10, percentile=0.7, interval=(0.4, 0.9), note="z" * 300))
    shown = ["says", "notices", "translation", "rotation", "displacement", "regions", "figures"]
    if view == "decode":
        for number in range(30):
            told.tell(score(f"t{number}", 0), wire.Caption(**head(f"t{number}", 0), text="long words " * 40))
        told.tell(wire.Reconstruction(**head("t29", 0), image=webp(1)))
        shown += ["picture", "caption", "evidence", "evidence-note", "list"]
        wait_for_picture(page, 9)
    else:
        shown += ["curve", "rank", "counts", "note"]
        settled(page, rank="70%")
    root = "document.documentElement"
    reaches(page, f"[{root}.scrollWidth, {root}.scrollHeight]", [width, height])
    for name in shown:
        box = page.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect().toJSON()", name)
        assert box["width"] > 20, name
        assert box["height"] > 10, name
        assert box["left"] >= 0, name
        assert box["right"] <= width, name
        assert box["bottom"] <= height, name
    sizes = "[...document.querySelectorAll('body *')].map(node => parseFloat(getComputedStyle(node).fontSize))"
    smallest = page.execute_script(f"return Math.min(...{sizes})")
    assert smallest >= 12


def test_a_film_shows_its_strip_of_match(page: Any, told: Told) -> None:
    told.tell(session(mode="calibrate"), run(1), *(volume(index) for index in range(40)))
    head_of = {"run": 1, "film": "film1", "final": True, "window": 20, "parcels": 90, "claim": 31.0}
    told.tell(*(wire.StimulusMatch(**head_of, volume=index, z=0.05 * index, rank=0.9) for index in range(40)))
    told.tell(wire.StimulusMatch(**head_of, volume=40, z=2.5, rank=0.97, networks={"Vis": 3.0}, offset_s=4.0))
    settled(page, says="comparing with the film")
    settled(page, **{"match-z": "z 2.5", "match-networks": "Vis 3.0"})
    note = page.execute_script("return document.getElementById('match-note').textContent")
    assert "better than 97% of other times of the film, chance 50%" in note
    assert "began 4.0 s later than announced" in note
    assert "evidence that it is followed 31 (it is)" in note
    for name, seen in (("match", True), ("translation", True), ("calibrating", False), ("trials", False)):
        box = page.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect().toJSON()", name)
        assert (box["height"] > 10) == seen, name
