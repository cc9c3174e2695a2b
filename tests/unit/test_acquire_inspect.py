from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from rtdecode.__main__ import main
from rtdecode.acquire.inspect import Report, inspect, picture
from tests.scans import XTC_SETTINGS, unpack
from tests.watching import put

KEYS = [
    *("vendor", "format", "software", "series_uid", "volume_index", "shape", "affine", "t_r_s", "slice_times_s"),
    *("slice_centres_ras", "acquired_at", "image_type", "echo", "sha256_i4", "problems"),
]


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_line_of_json_for_each_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for instance in (2, 1, 3):
        put(tmp_path, instance)
    (tmp_path / "notes.txt").write_text("not looked at")
    assert main(["inspect", "--json", str(tmp_path)]) == 0
    found = lines(capsys.readouterr().out)
    assert [list(line) for line in found] == [KEYS] * 3
    assert [line["volume_index"] for line in found] == [0, 1, 2]
    assert found[0]["acquired_at"] == "2001-02-03T04:05:06"
    assert found[0]["slice_times_s"] == [0.0, 0.5, 1.0, 1.5]
    assert found[0]["problems"] == []
    assert found[0]["t_r_s"] == 2.0
    assert [field.name for field in dataclasses.fields(Report)] == KEYS


def test_packed_files_tell_the_same(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    plain = inspect([path]).reports
    packed = tmp_path / "packed.dcm.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [r.sha256_i4 for r in inspect([packed]).reports] == [r.sha256_i4 for r in plain]


def test_copies_are_told_once(tmp_path: Path) -> None:
    path = put(tmp_path, 1)
    shutil.copy(path, tmp_path / "zz_copy.dcm")
    (report,) = inspect([tmp_path]).reports
    assert report.problems == ("comes again in zz_copy.dcm",)


def test_the_table_names_what_is_unknown_and_the_errors_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "v_1.nii")
    (tmp_path / "junk").write_text("nothing to see " * 20)
    assert main(["inspect", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "4x5x6" in told.out
    assert "\n  volume 0: slice_times_s: the header has no slice order" in told.out
    assert told.err.startswith("junk: preamble")


def test_nothing_found_is_an_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(tmp_path)]) == 1
    assert main(["inspect", str(tmp_path / "absent.dcm")]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "absent.dcm: No such file" in told.err


def test_settings_complete_a_dump(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export, settings = tmp_path / "0001", tmp_path / "session.toml"
    export.mkdir()
    unpack(shared, "philips-xtc-dump-0001", export)
    settings.write_text("[session]\nparticipant = 'x'\n" + XTC_SETTINGS)
    assert main(["inspect", "--json", "--settings", str(settings), str(export)]) == 0
    found = lines(capsys.readouterr().out)
    assert [(line["volume_index"], line["t_r_s"]) for line in found] == [(0, 1.2)] * 2 + [(1, 1.2)] * 2
    assert all(line["affine"] is not None for line in found)


def test_the_picture_shows_all_slices_front_up(tmp_path: Path) -> None:
    path = put(tmp_path, 1, shape=(8, 6, 5))
    target = tmp_path / "look.png"
    assert main(["inspect", "--png", str(target), str(path)]) == 0
    with Image.open(target) as image:
        assert (image.mode, image.size) == ("L", (3 * 8, 2 * 6))
    data = np.zeros((4, 3, 2), np.int16)
    data[1, 2, 1] = 100  # to the front in the second slice
    shown = picture(data)
    assert np.argwhere(shown).tolist() == [[0, 4 + 1]]


def test_floating_point_has_no_integer_digest(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), tmp_path / "v_1.nii")
    (report,) = inspect([tmp_path]).reports
    assert report.sha256_i4 is None
    assert any(problem.startswith("sha256_i4") for problem in report.problems)
