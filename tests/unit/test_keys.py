"""The file of keys, and the commands that change it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from rtdecode.__main__ import main
from rtdecode.client import read_key
from rtdecode.errors import KeysError
from rtdecode.publish import requests
from rtdecode.publish.access import Access, least_role, new_key, read_keys, revoke


def test_keys_are_made_listed_and_revoked_by_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, out = tmp_path / "keys.toml", tmp_path / "anna.key"
    assert main(["keys", "new", "anna", "--role", "experiment", "--keys", str(keys), "--out", str(out)]) == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in (keys, out)} == {0o600}
    (held,) = read_keys(keys).clients
    given = read_key(str(out))
    assert (given["name"], given["public"], given["server"]) == ("anna", held.public, read_keys(keys).public)
    assert given["secret"] not in keys.read_text()
    assert main(["keys", "revoke", "anna", "--keys", str(keys)]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--keys", str(keys)]) == 0
    listed = capsys.readouterr().out
    assert "anna" in listed
    assert "experiment" in listed
    assert read_keys(keys).clients[0].revoked


def test_a_name_has_one_key_that_holds(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    new_key(keys, "anna", "observe", tmp_path / "1.key")
    with pytest.raises(KeysError, match="anna has a key already; revoke it first"):
        new_key(keys, "anna", "operate", tmp_path / "2.key")
    with pytest.raises(KeysError, match=r"expected the name of a key that holds \(anna\), got 'ben'"):
        revoke(keys, "ben")
    with pytest.raises(KeysError, match="exists already"):
        new_key(keys, "ben", "observe", tmp_path / "1.key")
    assert [key.name for key in read_keys(keys).clients] == ["anna"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "expected a value, got none"),
        ("schema = 1", "schema: expected str"),
        ("nonsense", "expected a file of `rtdecode keys new`"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(content)
    with pytest.raises(KeysError, match=problem):
        Access(keys)


def test_keys_of_another_version_are_refused_with_both_named(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    new_key(keys, "anna", "observe", tmp_path / "anna.key")
    keys.write_text(keys.read_text().replace("rtdecode.keys/1", "rtdecode.keys/2"))
    with pytest.raises(KeysError, match=r"expected schema rtdecode\.keys/1, got rtdecode\.keys/2"):
        read_keys(keys)


def test_a_file_that_is_spoilt_while_the_daemon_runs_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys.toml"
    new_key(keys, "anna", "observe", tmp_path / "anna.key")
    access, good = Access(keys), keys.read_text()
    keys.write_text("nonsense")
    assert access.refresh() == access.refresh() == set()
    assert access.caller("anna").role == "observe"
    assert caplog.text.count("keys stay as they were") == 1
    keys.write_text(good)
    assert access.refresh() == set()
    revoke(keys, "anna")
    assert access.refresh() == {"anna"}
    assert access.caller("anna").role is None


def test_a_client_refuses_a_file_that_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "x.key"
    path.write_text('{"rtdecode": "something else"}')
    with pytest.raises(ValueError, match="expected a client's file of `rtdecode keys new`"):
        read_key(str(path))


def test_requests_that_change_the_session_need_the_role_to_operate() -> None:
    assert least_role(requests.Mode) == least_role(requests.CalibrationProgress) == "operate"
    assert least_role(requests.Event) == "experiment"
    assert least_role(requests.Replay) == "observe"
