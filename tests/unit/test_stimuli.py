"""Pictures by the name of their stimulus."""

from __future__ import annotations

from pathlib import Path

from rtdecode.stimuli import picture_of, pictures_in


def test_a_picture_without_content_lies_in_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "null").mkdir()
    for path in (tmp_path / "cat.png", tmp_path / "null" / "null.png"):
        path.write_bytes(b"")
    assert picture_of(tmp_path, "null") == tmp_path / "null" / "null.png"
    assert picture_of(tmp_path, "cat") == tmp_path / "cat.png"
    assert picture_of(tmp_path, "dog") is None
    assert list(pictures_in(tmp_path)) == ["cat"]
