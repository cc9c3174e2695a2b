"""Names, kinds and places of files that nobody expects: each is passed over with a reason, and the rest is read."""

from __future__ import annotations

import gzip
import io
import os
import random
import socket
import struct
from pathlib import Path

import msgspec
import nibabel as nib
import numpy as np
import pytest

from rtdecode.acquire import folder
from rtdecode.acquire.inspect import inspect
from rtdecode.acquire.parrec import companion
from rtdecode.acquire.readers import Readers
from rtdecode.acquire.stored import GZIP_MAGIC, MAX_FILE_BYTES, inflate
from rtdecode.errors import IncompleteFile, VolumeError
from rtdecode.records import Volume
from tests.conftest import FakeClock
from tests.scans import manifest
from tests.watching import SHAPE, nifti, put, told, watch

MUTANTS = int(os.environ.get("RTDECODE_MUTANTS", "400"))
FIELDS = {"vox_offset": 108, "scl_slope": 112, "scl_inter": 116, "quatern_b": 256, "pixdim": 76, "slice_duration": 132}


def members(raw: bytes, size: int) -> bytes:
    return b"".join(gzip.compress(raw[at : at + size]) for at in range(0, len(raw), size))


@pytest.mark.parametrize("size", [1, 7, 1000, 65280])
def test_all_members_of_a_gzip_are_read(size: int) -> None:
    raw = np.random.default_rng(size).integers(0, 50, min(300 * size, 200_000)).astype(np.uint8).tobytes()
    packed = members(raw, size)
    assert inflate(Path("a.gz"), packed) == (gzip.decompress(packed), True)
    assert inflate(Path("a.gz"), packed, len(raw)) == (raw, True)
    assert inflate(Path("a.gz"), packed, len(raw) - 1) == (raw[:-1], False)
    assert inflate(Path("a.gz"), packed + bytes(512)) == (raw, True)
    assert inflate(Path("a.gz"), packed[:-1])[1] is False


def test_members_are_bounded() -> None:
    with pytest.raises(VolumeError, match="at most 100000 members"):
        inflate(Path("a.gz"), gzip.compress(b"") * 100_001, MAX_FILE_BYTES)


def test_members_of_a_series_and_of_a_dicom_file_are_read(tmp_path: Path) -> None:
    made = nib.Nifti1Image(np.random.default_rng(1).integers(1, 4000, (*SHAPE, 6)).astype(np.int16), np.eye(4))
    (tmp_path / "bold.nii.gz").write_bytes(members(made.to_bytes(), 500))
    found = Readers(tmp_path).read(tmp_path / "bold.nii.gz").volumes
    np.testing.assert_array_equal(np.stack([v.data for v in found], axis=3), np.asarray(made.dataobj))
    path = put(tmp_path, 1)
    (tmp_path / "one.dcm.gz").write_bytes(members(path.read_bytes(), 1000))
    plain, packed = (inspect([file]).reports[0] for file in (path, tmp_path / "one.dcm.gz"))
    assert packed.sha256_i4 == plain.sha256_i4


def test_names_that_are_no_text_are_read_and_told(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    strange = [b"caf\xe9.dcm", "1²2.dcm".encode(), "٣.dcm".encode(), b"new\nline.dcm"]
    for instance, name in enumerate(strange, start=1):
        os.rename(os.fsencode(put(tmp_path, instance)), os.path.join(os.fsencode(tmp_path), name))
    (tmp_path / os.fsdecode(b"br\xf6ken.dcm")).write_bytes(b"x" * 200)
    arrivals = source.poll()
    assert sorted(told(arrivals), key=str) == [
        (0, None, "unreadable"),
        *[(1, index, "volume") for index in range(4)],
    ]
    for arrival in arrivals:
        item = arrival.item
        assert msgspec.msgpack.encode([item.path, "" if isinstance(item, Volume) else item.reason])
        assert "\n" not in item.path
    assert len(inspect([tmp_path]).reports) == 4
    assert "br\ufffdken.dcm" in "".join(inspect([tmp_path]).refused)


def test_nifti_in_a_folder_whose_name_is_no_text_is_read(tmp_path: Path, clock: FakeClock) -> None:
    place = tmp_path / os.fsdecode(b"l\xe4uft")
    for number in (1, 2):
        nifti(place, f"v_{number}.nii", number)
    found = [arrival.item for arrival in watch(tmp_path, clock, t_r_s=2.0).poll()]
    assert [isinstance(item, Volume) and item.series_uid for item in found] == ["l\ufffduft/v_"] * 2


@pytest.mark.parametrize("suffix", [".dcm", ".nii", ".par"])
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, clock: FakeClock, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe_1{suffix}")
    (tmp_path / f"null_1{suffix}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket has to be short
        listening.bind(f"talk_1{suffix}")
        os.chdir(here)
        put(tmp_path, 1)
        assert told(watch(tmp_path, clock).poll()) == [(1, 0, "volume")]
        for kind in ("pipe", "null", "talk"):
            with pytest.raises(VolumeError, match="a regular file"):
                Readers(tmp_path).read(tmp_path / f"{kind}_1{suffix}")
            assert not inspect([tmp_path / f"{kind}_1{suffix}"]).reports


def test_a_pipe_beside_a_par_file_is_never_opened(shared: Path, tmp_path: Path) -> None:
    source = next((shared / "data" / "philips-parrec-epi-asc").glob("*.PAR"))
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes())
    os.mkfifo(companion(path))
    with pytest.raises(VolumeError, match="a regular file"):
        Readers(tmp_path).read(path)


def test_links_to_themselves_and_to_the_folder_above_are_passed_over(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "self.dcm").symlink_to(tmp_path / "self.dcm")
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nothing")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "above").symlink_to(tmp_path)
    put(tmp_path / "inner", 1)
    assert told(watch(tmp_path, clock).poll()) == [(1, 0, "volume")]


def test_a_folder_that_cannot_be_listed_is_told_once_and_passed_over(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "locked").mkdir()
    put(tmp_path, 1)
    scandir = os.scandir

    def guarded(path: str) -> object:  # the tests may run as root, whom no permission stops
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", guarded)
    source = watch(tmp_path, clock)
    assert told(source.poll()) == [(1, 0, "volume")]
    assert (source.poll(), source.problem) == ([], None)
    assert len([record for record in caplog.records if "locked" in record.getMessage()]) == 1
    assert inspect([tmp_path]).refused == ("locked: Permission denied",)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 5.0, -1.0, 1e38])
@pytest.mark.parametrize("field", FIELDS)
def test_absurd_numbers_in_a_nifti_header_are_a_reason(
    tmp_path: Path, clock: FakeClock, field: str, value: float
) -> None:
    made = nib.Nifti1Image(np.ones((*SHAPE, 2), np.int16), np.eye(4))
    made.header.set_qform(np.eye(4), 1)
    made.header.set_sform(None, 0)
    raw = bytearray(made.to_bytes())
    raw[FIELDS[field] : FIELDS[field] + 4] = struct.pack("<f", value)
    (tmp_path / "bold.nii").write_bytes(raw)
    put(tmp_path, 1)
    source = watch(tmp_path, clock)
    source.poll()
    clock.sleep(10.0)
    source.poll()
    assert source.problem is None
    found = inspect([tmp_path / "bold.nii"])
    assert bool(found.reports) != bool(found.refused)
    assert "content" not in "".join(found.refused)  # each has a reason of its own
    for report in found.reports:
        assert np.isfinite(np.ravel(report.affine)).all()


def samples(shared: Path) -> list[tuple[str, bytes]]:
    """Small files of several formats."""
    folder_of = shared / "data"
    made = nib.Nifti1Image(np.arange(360, dtype=np.int16).reshape(6, 5, 4, 3), np.diag([3.0, 3, 4, 1]))
    made.header.set_qform(made.affine, 1)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write(made.to_bytes())
    found = [("m_1.nii", made.to_bytes()), ("m_1.nii.gz", packed.getvalue())]
    names = ("uih-umr770-r002", "philips-classic-achieva", "ge-mr750-nih", "siemens-vb17-trio")
    for name in names:
        paths = [shared / "data" / file["path"] for file in manifest(shared)[name]["files"]]
        raw = min(paths, key=lambda path: path.stat().st_size).read_bytes()
        found.append((f"{name}.dcm", gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw))
    dump = next((folder_of / "philips-xtc-dump-0001").glob("*.par"))
    return [*found, ("m_1.par", dump.read_bytes())]


@pytest.mark.filterwarnings("ignore")  # of the arithmetic of absurd numbers, and of nibabel
def test_mutants_of_small_files_end_at_the_seam(shared: Path, tmp_path: Path) -> None:
    """Only what a reader promises comes out of it, whatever a byte or number of a header became."""
    chance = random.Random(17)
    numbers = [struct.pack("<f", x) for x in (np.nan, np.inf, -np.inf, 5, -1, 0, 1e38)] + [b"\xff" * 4, b"\x7f\xff"]
    files, outcomes = samples(shared), {"read": 0, "refused": 0}
    for turn in range(MUTANTS):
        name, whole = files[turn % len(files)]
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(min(len(raw), chance.choice((352, 4000, len(raw)))))
            new = chance.choice((bytes([chance.randrange(256)]), chance.choice(numbers)))
            at -= at % len(new)
            raw[at : at + len(new)] = new
        path = tmp_path / name
        path.write_bytes(raw)
        readers = Readers(tmp_path)
        try:
            reading = readers.read(path)
            outcomes["read"] += 1
            for volume in reading.volumes:
                volume.rescaled()
        except VolumeError:
            outcomes["refused"] += 1
        readers.identify(path)
        for report in inspect([path]).reports:
            msgspec.json.encode(report)
    assert min(outcomes.values()) > MUTANTS // 20


def test_whatever_a_reader_raises_ends_at_the_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, 1)
    readers = Readers(tmp_path)
    for raised in (ZeroDivisionError("x"), KeyError("x"), RecursionError("x"), MemoryError("x")):

        def fail(*_: object, error: Exception = raised) -> None:
            raise error

        monkeypatch.setattr(readers._dicom, "read", fail)
        with pytest.raises(VolumeError, match=type(raised).__name__):
            readers.read(path)
    for promised in (IncompleteFile(path, "a", "b", "c"), OSError("x")):
        monkeypatch.setattr(readers._dicom, "read", lambda *_, error=promised: (_ for _ in ()).throw(error))
        with pytest.raises(type(promised)):
            readers.read(path)
