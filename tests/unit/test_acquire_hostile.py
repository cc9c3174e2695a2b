"""Broken and hostile files: bounded time and memory, `VolumeError` and nothing else, and nobody's name told."""

from __future__ import annotations

import functools
import gzip
import io
import logging
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtdecode.acquire import elements, header, parrec
from rtdecode.acquire.inspect import inspect
from rtdecode.acquire.readers import Readers
from rtdecode.errors import IncompleteFile, VolumeError
from rtdecode.records import Skipped
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock
from tests.scans import manifest, series_ids, unpack
from tests.watching import series, watch

EXAMPLES = int(os.environ.get("RTDECODE_FUZZ_EXAMPLES", "25"))
HEADER_BYTES = 200_000
PEOPLE = (0x00100010, 0x00100020, 0x00100030, 0x00080090, 0x00081070, 0x00104000, 0x00080081)
SECRET = "Zacharias^Geheim"
NUMBERS = (b"\xff\xff\xff\xff", b"\xff\xff", b"\x00\x00", b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xff\xff\xff\x7f")

edits = st.lists(
    st.tuples(st.sampled_from(("set", "cut", "repeat", "number")), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=8,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", series_ids(metafunc))


def damaged(raw: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Change some bytes, mostly where the header is."""
    out = bytearray(raw)
    for kind, where, value in changes:
        span = min(len(out), HEADER_BYTES) if value % 8 else len(out)
        at = int(where * max(span - 1, 0))
        if kind == "set" and out:
            out[at] = value
        elif kind == "number":
            number = NUMBERS[value % len(NUMBERS)]
            out[at : at + len(number)] = number
        elif kind == "cut":
            del out[at : at + 1 + value]
        elif kind == "repeat":
            out[at:at] = out[at : at + 1 + value]
    return bytes(out)


def read(path: Path) -> None:
    """Read and tell a file; whatever raises is a failure, since `inspect` refuses what is a `VolumeError`."""
    for report in inspect([path]).reports:
        msgspec.json.encode(report)
    Readers(path.parent).identify(path)


@functools.cache
def sample(shared: Path, name: str) -> tuple[str, bytes, bytes]:
    """Name and bytes of one file of a series, and of the file beside it if there is one."""
    entry = manifest(shared)[name]["files"]
    first = next((file for file in entry if file["path"].lower().endswith(".par")), entry[0])
    path = shared / "data" / first["path"]
    raw = path.read_bytes()
    packed = path.name.endswith(".gz") and not path.name.endswith(".nii.gz")
    beside = parrec.companion(path)
    other = beside.read_bytes() if path.suffix.lower() == parrec.SUFFIX else b""
    return first.get("raw_name") or path.name, gzip.decompress(raw) if packed else raw, other


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow in the arithmetic of absurd numbers
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=EXAMPLES, deadline=None)
@given(changes=edits, packed=st.booleans())
def test_a_damaged_file_raises_nothing_but_volume_errors(
    shared: Path, name: str, tmp_path: Path, changes: list[tuple[str, float, int]], packed: bool
) -> None:
    file, raw, beside = sample(shared, name)
    content = damaged(raw, changes)
    suffixes = (".par", ".gz", ".nii")
    path = tmp_path / (f"{file}.gz" if packed and not file.lower().endswith(suffixes) else file)
    path.write_bytes(gzip.compress(content, 1) if path.name != file else content)
    if beside:
        parrec.companion(path).write_bytes(beside)
    read(path)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=EXAMPLES, deadline=None)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_shorter_file_is_incomplete(shared: Path, name: str, tmp_path: Path, fraction: float) -> None:
    file, raw, beside = sample(shared, name)
    if file.endswith(".nii.gz"):
        raw = raw[: max(len(raw) // 2, 200)]
    path = tmp_path / file
    # a PAR file ends in a comment, and some files in elements after the pixels: nothing is lost without those
    path.write_bytes(raw[: int(fraction * len(raw) * 0.9)])
    if beside:
        parrec.companion(path).write_bytes(beside)
    with pytest.raises(IncompleteFile):
        Readers(tmp_path).read(path)


@pytest.fixture
def whole() -> bytes:
    data = np.random.default_rng(0).integers(1, 4000, (16, 12, 7)).astype(np.uint16)
    buffer = io.BytesIO()
    mosaic.dataset(series((16, 12, 7)), 1, data).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def changed(raw: bytes, **values: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(raw))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    """Sequences of open length in each other."""
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * depth


def with_elements(raw: bytes, inserted: bytes) -> bytes:
    """Put elements where the data set begins, after the file meta group."""
    length = struct.unpack_from("<I", raw, 140)[0]
    return raw[: 144 + length] + inserted + raw[144 + length :]


def bombs(raw: bytes) -> dict[str, bytes]:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    meta = changed(raw)
    length = struct.unpack_from("<I", meta, 140)[0]
    deflated = meta[: 144 + length].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    deflated = deflated[:140] + struct.pack("<I", len(deflated) - 144) + deflated[144:]
    at = deflated.index(b"1.2.840.10008.1.2.1.99") - 2
    deflated = deflated[:at] + struct.pack("<H", 22) + deflated[at + 2 :]
    tiny = struct.pack("<HH2sH", 0x0009, 0x0001, b"LO", 0)
    return {
        "huge": changed(raw, Rows=65535, Columns=65535),
        "many frames": changed(raw, NumberOfFrames=2_000_000_000),
        "negative frames": changed(raw, NumberOfFrames=-5),
        "no pixels": changed(raw, Rows=0),
        "deep": with_elements(raw, nested(5000)),
        "many elements": with_elements(raw, tiny * 400_000),
        "inflates": deflated + deflater.compress(bytes(80_000_000)) + deflater.flush(),
        "packed": gzip.compress(raw[:132] + bytes(80_000_000)),
    }


@pytest.mark.parametrize("kind", ["huge", "many frames", "negative frames", "no pixels"])
def test_absurd_dimensions_are_refused(whole: bytes, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bomb.dcm"
    path.write_bytes(bombs(whole)[kind])
    with pytest.raises(VolumeError):
        Readers(tmp_path).read(path)


@pytest.mark.parametrize("kind", ["huge", "many frames", "deep", "many elements", "inflates", "packed"])
def test_memory_stays_below_a_bound(whole: bytes, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is the file, its inflated form and the pixels, each at most the largest file, and the elements."""
    limit = 4 * 2**20
    monkeypatch.setattr(header, "MAX_FILE_BYTES", limit)
    monkeypatch.setattr(elements._Budget, "__init__", lambda self: setattr(self, "left", 20_000))
    path = tmp_path / ("bomb.dcm.gz" if kind == "packed" else "bomb.dcm")
    path.write_bytes(bombs(whole)[kind])
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError):
            Readers(tmp_path).read(path)
        assert tracemalloc.get_traced_memory()[1] < size + 4 * limit + 400 * 20_000
    finally:
        tracemalloc.stop()


def test_a_code_stream_of_another_size_is_refused_unopened(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("openjpeg")
    path = next(p for p, _ in unpack(shared, "transfer-syntaxes-a", tmp_path) if p.name == "9.dcm")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\xff\x51") + 6
    raw[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(raw)
    with pytest.raises(VolumeError, match="code stream"):
        Readers(tmp_path).read(path)


def test_a_missing_codec_names_the_extra(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda self: False))
    path = next(p for p, _ in unpack(shared, "transfer-syntaxes-a", tmp_path) if p.name == "9.dcm")
    with pytest.raises(VolumeError, match=r"\.\[jpeg\]"):
        Readers(tmp_path).read(path)


def test_nobody_is_named(
    shared: Path, name: str, tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is read or refused, no identity field shows in volumes, reasons, reports or logs."""
    file, raw, beside = sample(shared, name)
    path = tmp_path / file
    if beside:
        secret = raw.replace(b"Patient name                       :", f"Patient name : {SECRET}".encode())
        parrec.companion(path).write_bytes(beside)
    elif ".nii" in file:
        pytest.skip("NIfTI has no identity fields")
    else:
        dataset = pydicom.dcmread(io.BytesIO(raw))
        for tag in PEOPLE:
            dataset.add_new(tag, pydicom.datadict.dictionary_VR(tag) if tag != 0x00100030 else "LO", SECRET)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        secret = buffer.getvalue()
    assert SECRET.encode() in secret
    told = []
    with caplog.at_level(logging.DEBUG):
        for shift in (0, 1, 3):  # shifted headers make other elements out of the names
            at = secret.index(SECRET.encode()) - 40
            path.write_bytes(secret[:at] + secret[at + shift :])
            told.append(repr(inspect([path])))
            source = watch(tmp_path, clock)
            for _ in range(3):
                for arrival in source.poll():
                    item = arrival.item
                    told.append(item.reason if isinstance(item, Skipped) else repr(item))
                clock.sleep(5.0)
    assert "Geheim" not in "".join(told) + caplog.text
