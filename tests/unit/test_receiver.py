"""The DICOM storage service: what it acknowledges is on the disk, and nobody else is let in."""

from __future__ import annotations

import datetime
import errno
import gc
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from rtdecode.acquire.receiver import Receiver, Reception
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.errors import ProtocolError, SettingsError
from rtdecode.records import Volume
from rtdecode.settings import ScannerSettings
from rtdecode.simulate.mosaic_writer import MosaicSeries, dataset
from tests.conftest import FakeClock
from tests.scans import unpack
from tests.unit.simulate_small import PROTOCOL

# pynetdicom leaves the sockets of connections that are cut off to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
pynetdicom = pytest.importorskip("pynetdicom", reason="no pynetdicom here: pip install 'rtdecode[receive]'")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()  # here, and not in the middle of another test


def image(instance: int = 1, value: int = 100) -> Dataset:
    series = MosaicSeries(
        study="s", number=3, affine=PROTOCOL.affine, t_r_s=PROTOCOL.t_r_s, slice_times_s=PROTOCOL.slice_times_s,
        start=datetime.datetime(2000, 1, 1),
    )  # fmt: skip
    return dataset(series, instance, np.full(PROTOCOL.shape, value, np.uint16))


@contextmanager
def calling(receiver: Receiver, *images: Dataset, title: str = "RTDECODE", calls: str = "CONSOLE") -> Iterator[Any]:
    """Yield an association with the receiver, for images like these."""
    entity = pynetdicom.AE(ae_title=calls)
    for kind, syntax in {(str(one.SOPClassUID), str(one.file_meta.TransferSyntaxUID)) for one in images}:
        entity.add_requested_context(kind, syntax)
    entity.add_requested_context("1.2.840.10008.1.1")
    link = entity.associate("127.0.0.1", receiver.port, ae_title=title)
    yield link
    if link.is_established:
        link.release()


def push(receiver: Receiver, *images: Dataset) -> list[int | None]:
    """Send images; return the status of each, None where there was no answer."""
    with calling(receiver, *images) as link:
        assert link.is_established
        return [getattr(link.send_c_store(one), "Status", None) for one in images if link.is_established]


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def volumes(folder: Path) -> list[tuple[int, int, bytes, bytes, float | None]]:
    clock = FakeClock()
    found: list[tuple[int, int, bytes, bytes, float | None]] = []
    with FolderWatcher(ScannerSettings(export_dir=folder, watch="polling", gap_timeout_s=1.0), "s", clock) as watcher:
        for _ in range(40):
            for one in watcher.poll():
                volume = one.item if hasattr(one, "item") else one
                assert isinstance(volume, Volume), volume
                found.append((
                    volume.stamp.run, volume.stamp.volume, volume.data.tobytes(), volume.affine.tobytes(), volume.t_r_s
                ))  # fmt: skip
            clock.sleep(0.2)
    return found


@pytest.mark.parametrize("sender", ["pynetdicom", "storescu"])
@pytest.mark.parametrize("name", ["siemens-vb17-trio", "siemens-xa30-enh-fmri"])
def test_a_series_that_is_pushed_is_the_same_volumes_as_one_that_is_copied(
    shared: Path, tmp_path: Path, name: str, sender: str
) -> None:
    copied, pushed = tmp_path / "copied", tmp_path / "pushed"
    copied.mkdir()
    pushed.mkdir()
    paths = [path for path, _ in unpack(shared, name, copied)]
    with Receiver(Reception(folder=pushed, port=0)) as receiver:
        if sender == "storescu":
            program = shutil.which("storescu")
            if program is None:
                pytest.skip("no storescu on this machine; install dcmtk")
            to = ["-aec", "RTDECODE", "127.0.0.1", str(receiver.port)]
            done = subprocess.run([program, *to, *map(str, paths)], check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        else:
            images = [dcmread(path) for path in paths]
            assert push(receiver, *images) == [0x0000] * len(images)
    expected = volumes(copied)
    assert expected
    assert volumes(pushed) == expected


def test_an_object_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        happened.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "content")
        fsync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        happened.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    one = image()
    with Receiver(Reception(folder=tmp_path, port=0)) as receiver, calling(receiver, one) as link:
        assert link.send_c_store(one).Status == 0x0000
        assert happened == ["content", "name", "folder"]
        (path,) = kept(tmp_path)
    assert [str(element) for element in dcmread(path)] == [str(element) for element in one]
    assert path.name.startswith(f"{one.SOPInstanceUID}-")


def test_what_a_full_disk_refuses_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver(Reception(folder=tmp_path, port=0)) as receiver:
        with monkeypatch.context() as full:

            def refuse(_: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            full.setattr(os, "fsync", refuse)
            assert push(receiver, image()) == [0xA700]
            assert kept(tmp_path) == []
        assert "refused an object of CONSOLE at 127.0.0.1: cannot be kept: No space left" in caplog.text
        assert push(receiver, image()) == [0x0000], "sent again when there is room"
    assert len(kept(tmp_path)) == 1


def test_an_object_never_takes_the_place_of_another(tmp_path: Path) -> None:
    with Receiver(Reception(folder=tmp_path, port=0)) as receiver:
        first, other = image(value=100), image(value=200)
        assert first.SOPInstanceUID == other.SOPInstanceUID
        assert push(receiver, first, first, other) == [0x0000] * 3
    assert {hashlib.sha256(dcmread(path).PixelData).hexdigest() for path in kept(tmp_path)} == {
        hashlib.sha256(one.PixelData).hexdigest() for one in (first, other)
    }
    assert len(kept(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("uid", ["../../evil", "/etc/evil", "1.2/3", "a.b", ".hidden"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, uid: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    one = image()
    one.SOPInstanceUID = uid
    with Receiver(Reception(folder=inner, port=0)) as receiver:
        assert push(receiver, one) == [0xC000]
    assert kept(inner) == []
    assert kept(tmp_path) == [inner]


def test_who_sends_more_than_is_kept_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = image()
    with Receiver(Reception(folder=tmp_path, port=0, largest_bytes=8_000)) as receiver:
        assert len(one.PixelData) > 2 * 8_000
        assert push(receiver, one) != [0x0000]
    assert "expected objects of at most 8000 bytes" in caplog.text
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("allowed", "call"),
    [
        ({}, {"title": "OTHER"}),
        ({"callers": ("MRC1", "MRC2")}, {"calls": "STRANGER"}),
        ({"addresses": ("192.0.2.7",)}, {}),
    ],
)
def test_strangers_are_refused(tmp_path: Path, allowed: dict[str, Any], call: dict[str, str]) -> None:
    with Receiver(Reception(folder=tmp_path, port=0, **allowed)) as receiver, calling(receiver, **call) as link:
        assert not link.is_established


def test_who_is_named_is_let_in_and_it_is_said_what_came(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reception = Reception(folder=tmp_path, port=0, callers=("CONSOLE",), addresses=("127.0.0.1",))
    with Receiver(reception) as receiver, calling(receiver, image()) as link:
        assert link.send_c_echo().Status == 0x0000
        assert [link.send_c_store(image(number)).Status for number in (1, 2)] == [0x0000] * 2
    assert "CONSOLE at 127.0.0.1: 2 stored, 0 refused" in caplog.text


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with (
        Receiver(Reception(folder=tmp_path, port=0)) as first,
        pytest.raises(ProtocolError, match=f"port {first.port}.*another --port"),
    ):
        Receiver(Reception(folder=tmp_path, port=first.port))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"host": "0.0.0.0"}, "--from: expected the scanner's address beside --host 0.0.0.0, got none"),
        ({"host": "console"}, "--host: expected an address like 192.0.2.7, got 'console'"),
        ({"addresses": ("console",)}, "--from: expected an address like 192.0.2.7, got 'console'"),
        ({"title": "A" * 17}, "--ae-title: expected 1 to 16 printable characters"),
        ({"callers": ("A\\B",)}, "--calling: expected 1 to 16 printable characters"),
        ({"folder": Path("/nowhere")}, "--out: expected a folder, got /nowhere"),
    ],
)
def test_what_cannot_be_is_said_before_it_listens(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match="expected") as refused:
        Reception(**{"folder": tmp_path, **wrong})
    assert told in str(refused.value)


def test_the_command_receives_until_it_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rtdecode", "receive", "--out", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("rtdecode receive: RTDECODE at 127.0.0.1 port ")
        port = int(line.split("port ")[1].split(",")[0])
        entity = pynetdicom.AE(ae_title="CONSOLE")
        one = image()
        entity.add_requested_context(str(one.SOPClassUID), str(one.file_meta.TransferSyntaxUID))
        link = entity.associate("127.0.0.1", port, ae_title="RTDECODE")
        assert link.send_c_store(one).Status == 0x0000
        link.release()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert len(kept(tmp_path)) == 1
