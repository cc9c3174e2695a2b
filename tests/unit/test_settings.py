from pathlib import Path

import pytest

from rtdecode.check import EXAMPLE
from rtdecode.errors import SettingsError
from rtdecode.settings import SeriesRule, load_settings, parse

MINIMAL = {"session": {"participant": "01"}, "scanner": {"export_dir": "export"}}


def test_example_is_valid(tmp_path: Path) -> None:
    (tmp_path / "session.toml").write_text(EXAMPLE)
    settings = load_settings(tmp_path / "session.toml")
    assert settings.scanner.export_dir == tmp_path / "export"
    assert settings.estimate.revise_at_s == (5.0, 6.5)
    assert settings.estimate.mask == "auto"


def test_every_problem_is_listed_with_its_path(tmp_path: Path) -> None:
    raw = {
        "session": {"participant": "sub/01", "seed": -1},
        "scanner": {"poll_s": 0},
        "estimate": {"hrf": "gamma", "revise_at_s": [9.0]},
        "publish": {"stream": "tcp://0.0.0.0:5591"},
        "sacnner": {},
    }
    with pytest.raises(SettingsError) as caught:
        parse(raw, root=tmp_path)
    text = "\n".join(caught.value.problems)
    for where in ("session.participant", "session.seed", "scanner.poll_s", "scanner.export_dir", "estimate.hrf",
                  "publish.stream", "$.sacnner"):  # fmt: skip
        assert where in text
    assert len(caught.value.problems) == 7


def test_a_word_that_is_none_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        parse({**MINIMAL, "estimate": {"registration": "rigged"}}, root=tmp_path)
    assert caught.value.problems == ["$.estimate.registration: expected one of 'rigid', 'off', got 'rigged'"]


def test_revisions_come_before_the_final_beta(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"revise_at_s.*before final_at_s"):
        parse({**MINIMAL, "estimate": {"revise_at_s": [9.0], "final_at_s": 8.0}}, root=tmp_path)


@pytest.mark.parametrize("text", [None, "[session\n", "\xff"])
def test_unreadable_file(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "s.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"s\.toml"):
        load_settings(path)


def test_rules_for_series(tmp_path: Path) -> None:
    rules = [{"description": "*sbref*", "use": False}, {"number": 12}]
    scanner = {"export_dir": "export", "series": rules, "echo": 2, "watch": "polling"}
    found = parse({**MINIMAL, "scanner": scanner}, root=tmp_path).scanner
    assert found.series == (SeriesRule(description="*sbref*", use=False), SeriesRule(number=12))
    assert (found.echo, found.watch) == (2, "polling")


@pytest.mark.parametrize(
    "wrong", [{"series": [{"descriptoin": "x"}]}, {"series": [{"number": "7"}]}, {"echo": 0}, {"watch": "inotify"}]
)
def test_wrong_rules_are_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=rf"\$\.scanner\.{next(iter(wrong))}"):
        parse({**MINIMAL, "scanner": {"export_dir": "export", **wrong}}, root=tmp_path)


@pytest.mark.parametrize(
    ("publish", "problem"),
    [
        ({"stream": "tcp://0.0.0.0:5591"}, "expected keys beside it"),
        ({"requests": "tcp://192.0.2.7:5592"}, "expected keys beside it"),
        ({"stream": "tcp://*:5591", "keys": "keys.toml"}, "expected tcp://IPV4-ADDRESS:PORT"),
        ({"stream": "tcp://stimulus-pc:5591", "keys": "keys.toml"}, "expected tcp://IPV4-ADDRESS:PORT"),
    ],
)
def test_other_machines_reach_the_daemon_only_with_keys(publish: dict[str, str], problem: str, tmp_path: Path) -> None:
    raw = {"session": {"participant": "01"}, "scanner": {"export_dir": "."}}
    with pytest.raises(SettingsError, match=problem):
        parse({**raw, "publish": publish}, root=tmp_path)


def test_with_keys_the_daemon_may_listen_to_other_machines(tmp_path: Path) -> None:
    raw = {"session": {"participant": "01"}, "scanner": {"export_dir": "."}}
    publish = {"stream": "tcp://0.0.0.0:5591", "requests": "tcp://192.0.2.7:5592", "keys": "keys.toml"}
    found = parse({**raw, "publish": publish}, root=tmp_path).publish
    assert found.keys == tmp_path / "keys.toml"
    assert found.nearby() == ("tcp://127.0.0.1:5591", "tcp://192.0.2.7:5592")


def test_a_pack_with_a_slash_is_a_folder_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "packs" / "own").mkdir(parents=True)
    (tmp_path / "tiny").mkdir()

    def pack(told: str) -> str:
        path = tmp_path / "session.toml"
        path.write_text(f'[session]\nparticipant = "01"\n[scanner]\nexport_dir = "export"\n[decode]\npack = "{told}"\n')
        return load_settings(path).decode.pack

    assert pack("packs/own") == str(tmp_path / "packs" / "own")
    assert pack("tiny") == "tiny"
    assert pack("packs/elsewhere") == "packs/elsewhere"
