"""The participant's page in a browser, and the page beyond loopback."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.errors import ProtocolError
from rtdecode.publish.display.guard import FarDoor
from rtdecode.publish.display.web import bound
from tests.page import Told, served
from tests.system.test_page import reaches, webp

pytestmark = pytest.mark.system


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def page(browser: Any, told: Told) -> Iterator[Any]:
    tell(told, wire.Heartbeat, every_s=20.0)
    with served(told) as address:
        browser.get(f"{address}participant?theme=light")
        yield browser
        browser.get("about:blank")


def tell(told: Told, kind: type[wire.Message], **more: Any) -> None:
    told.tell(kind(session="s", t_published=time.time(), **more))


def shows(page: Any, what: str) -> None:
    reaches(page, "document.body.dataset.shows", what)


def test_fixation_a_thermometer_and_a_picture_that_is_supported(page: Any, told: Told) -> None:
    shows(page, "fixation")
    tell(told, wire.Feedback, state="shown", step=5, steps=20)
    shows(page, "thermometer")
    reaches(page, "document.getElementById('level').style.height", "25%")
    assert page.execute_script("return document.body.hasAttribute('data-held')") is False
    tell(told, wire.Feedback, state="held", steps=20)
    reaches(page, "document.body.hasAttribute('data-held')")
    head = {"trial": "t1", "revision": 0}
    tell(told, wire.Score, **head, supported=True)
    tell(told, wire.Reconstruction, **head, image=webp(3))
    shows(page, "picture")
    reaches(page, "document.getElementById('picture').naturalWidth", 11)
    tell(told, wire.Score, trial="t1", revision=1, supported=False, refused="no picture in it")
    shows(page, "thermometer")
    tell(told, wire.Run, state="ended", run=1)
    shows(page, "fixation")
    assert page.find_element("id", "trouble").text == ""
    assert page.get_log("browser") == []


def test_a_view_that_lags_says_so_instead_of_showing_old_pictures(page: Any, told: Told) -> None:
    tell(told, wire.Feedback, state="shown", step=5, steps=20)
    shows(page, "thermometer")
    # The browser draws each state later than the page allows.
    page.execute_script(
        "const real = performance.now.bind(performance); let add = 0;"
        "performance.now = () => real() + add; window.delay = ms => { add = ms; };"
    )
    shows(page, "thermometer")
    page.execute_script("window.delay(900)")
    shows(page, "fixation")
    reaches(page, "document.getElementById('trouble').textContent.startsWith('late by 0.')")
    page.execute_script("window.delay(0)")
    tell(told, wire.Feedback, state="shown", step=5, steps=20)  # none stays for longer than ten seconds
    shows(page, "thermometer")
    tell(told, wire.Score, trial="t1", revision=0, supported=True)
    tell(told, wire.Reconstruction, trial="t1", revision=0, image=webp(3))
    shows(page, "picture")
    page.execute_script("window.delay(2400)")
    reaches(page, "document.getElementById('trouble').textContent.startsWith('late by 2.')")
    shows(page, "fixation")
    assert not page.find_element("id", "picture").is_displayed()


def test_a_view_whose_browser_was_busy_does_not_catch_up_with_old_pictures(page: Any, told: Told) -> None:
    tell(told, wire.Score, trial="t1", revision=0, supported=True)
    shows(page, "fixation")
    # What the page shows after each of its turns, once it can work again.
    page.execute_script(
        "window.seen = []; new MutationObserver(() => seen.push(document.body.dataset.shows)).observe(document.body,"
        "{attributes: true}); setTimeout(() => { const end = Date.now() + 1500; while (Date.now() < end); }, 200);"
    )
    time.sleep(0.3)
    tell(told, wire.Reconstruction, trial="t1", revision=0, image=webp(3))
    tell(told, wire.Score, trial="t2", revision=0, supported=False)  # it must not be seen after this
    reaches(page, "Number(document.body.dataset.version)", told.view.version)
    assert "picture" not in page.execute_script("return window.seen")


def test_a_view_without_contact_says_so(browser: Any, told: Told) -> None:
    tell(told, wire.Heartbeat, every_s=20.0)
    with served(told) as address:
        browser.get(f"{address}participant")
        tell(told, wire.Feedback, state="shown", step=5, steps=20)
        shows(browser, "thermometer")
    shows(browser, "fixation")
    reaches(browser, "document.getElementById('trouble').textContent", "no contact with the page's server")
    browser.get("about:blank")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    names = (folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=display.lab", "-addext", "subjectAltName=DNS:display.lab"),
            *("-out", names[0], "-keyout", names[1]),
        ],
        check=True,
        capture_output=True,
    )
    return names


def test_the_page_reaches_other_machines_encrypted_and_with_a_token_only(
    told: Told, certificate: tuple[Path, Path]
) -> None:
    door = FarDoor(host="0.0.0.0", certificate=certificate[0], secret=certificate[1], names=("display.lab",))
    server, listening, address = bound(told, None, 0, door)
    port = listening.getsockname()[1]
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    serving.start()
    trusted = ssl.create_default_context(cafile=str(certificate[0]))

    class Named(http.client.HTTPSConnection):
        """A connection to this machine under the name that browsers use."""

        def connect(self) -> None:
            http.client.HTTPConnection.connect(self)
            self.sock = trusted.wrap_socket(self.sock, server_hostname="display.lab")

    def ask(path: str, **headers: str) -> tuple[int, http.client.HTTPMessage]:
        connection = Named("127.0.0.1", port, timeout=60, context=trusted)
        connection.request("GET", path, headers={"Host": f"display.lab:{port}", **headers})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, answer.msg

    assert address == f"https://display.lab:{port}/?token={door.token}"
    assert door.token not in repr(door)
    assert ask("/")[0] == 403
    assert ask("/?token=wrong")[0] == 403
    assert ask(f"/?token={door.token}", Host=f"elsewhere.example:{port}")[0] == 403
    status, headers = ask(f"/?token={door.token}")
    cookie = headers["Set-Cookie"]
    assert (status, headers["Location"]) == (303, "/")
    assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=strict"))
    shown = cookie.partition(";")[0]
    assert ask("/", Cookie=shown)[0] == 200
    assert ask("/", Cookie=shown, Origin="https://elsewhere.example")[0] == 403
    shake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    shake |= {"Sec-WebSocket-Key": "A" * 22 + "==", "Origin": f"https://display.lab:{port}"}
    assert ask("/participant/stream", **shake)[0] == 403
    assert ask("/participant/stream", **shake, Cookie="rtdecode=wrong")[0] == 403
    plain = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    plain.request("GET", "/", headers={"Host": f"display.lab:{port}"})
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        plain.getresponse()
    plain.close()
    server.should_exit = True
    serving.join()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--host", "0.0.0.0"], "expected --certificate, --certificate-key, --name beside it"),
        (["--certificate", "c.pem"], "expected --host beside it"),
    ],
)
def test_the_page_is_not_served_to_other_machines_without_a_certificate(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["display", *options]) == 2
    assert problem in capsys.readouterr().err


def test_a_certificate_that_is_none_is_told(told: Told, tmp_path: Path) -> None:
    door = FarDoor(host="127.0.0.1", certificate=tmp_path / "c.pem", secret=tmp_path / "k.pem", names=("x",))
    with pytest.raises(ProtocolError, match="expected a TLS certificate and its key"):
        bound(told, None, 0, door)
