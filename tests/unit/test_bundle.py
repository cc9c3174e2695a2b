import hashlib
from pathlib import Path

import pytest

from rtdecode.errors import BundleError
from rtdecode.packs import open_pack, open_participant
from rtdecode.packs.description import PACK_SCHEMA, write_description
from rtdecode.packs.sealed import seal, verify
from tests.packs import description


def write(folder: Path) -> None:
    write_description(folder, description())
    (folder / "weights").mkdir()
    (folder / "weights" / "a.bin").write_bytes(b"abc")


def test_sealed_folder_opens_and_its_identity_follows_its_content(tmp_path: Path) -> None:
    identity = seal(tmp_path / "a", PACK_SCHEMA, write)
    assert open_pack(str(tmp_path / "a")).identity == identity
    assert seal(tmp_path / "b", PACK_SCHEMA, write) == identity
    assert open_pack(str(tmp_path / "a")).digest("weights/a.bin") == hashlib.sha256(b"abc").hexdigest()
    assert open_pack(str(tmp_path / "a")).digest("absent") == ""
    other = seal(tmp_path / "b", PACK_SCHEMA, lambda f: write_description(f, description("x")))
    assert other != identity


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "weights" / "a.bin").write_bytes(b"abd"), "content differs"),
        (lambda f: (f / "weights" / "a.bin").unlink(), "missing"),
        (lambda f: (f / "more").write_bytes(b""), "not listed"),
        (lambda f: (f / "manifest.json").unlink(), "found none"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
    ],
)
def test_anything_altered_is_refused(tmp_path: Path, spoil, reason: str) -> None:  # type: ignore[no-untyped-def]
    seal(tmp_path / "a", PACK_SCHEMA, write)
    spoil(tmp_path / "a")
    with pytest.raises(BundleError, match=reason):
        verify(tmp_path / "a", PACK_SCHEMA)


def test_another_schema_is_named(tmp_path: Path) -> None:
    seal(tmp_path / "a", "rtdecode.engine-pack/0", write)
    with pytest.raises(BundleError, match=r"engine-pack/1.*engine-pack/0; another version of rtdecode made it"):
        open_pack(str(tmp_path / "a"))
    seal(tmp_path / "b", "rtdecode.participant-bundle/1", write)
    with pytest.raises(BundleError, match=r"engine-pack/1, got rtdecode.participant-bundle/1$"):
        open_pack(str(tmp_path / "b"))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        seal(tmp_path / "a", PACK_SCHEMA, fail)
    assert not list(tmp_path.iterdir())


def test_only_a_sealed_or_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "exports" / "day").mkdir(parents=True)
    (tmp_path / "exports" / "day" / "volume.dcm").write_bytes(b"scan")
    (tmp_path / "notes").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name, reason in (("exports", "holds other files"), ("notes", "got a file")):
        with pytest.raises(BundleError, match=rf"{name}: expected a new folder.*{reason}"):
            seal(tmp_path / name, PACK_SCHEMA, write)
    assert (tmp_path / "exports" / "day" / "volume.dcm").read_bytes() == b"scan"
    assert (tmp_path / "notes").read_text() == "kept"
    assert seal(tmp_path / "empty", PACK_SCHEMA, write) == seal(tmp_path / "empty", PACK_SCHEMA, write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "exports", "notes"]


@pytest.mark.parametrize("spoil", ["a file", "too long", "NUL", "a list", "not UTF-8"])
def test_what_is_no_bundle_is_named_whatever_it_is(tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "bundle"
    if spoil == "a file":
        folder.write_bytes(b"")
    elif spoil == "too long":
        folder = tmp_path / ("b" * 4000)
    elif spoil == "NUL":
        folder = tmp_path / "b\0c"
    else:
        folder.mkdir()
        (folder / "manifest.json").write_bytes(b"[1]" if spoil == "a list" else b"\xff\xfe")
    with pytest.raises(BundleError, match=r"sealed folder|JSON|schema"):
        open_participant(folder)
