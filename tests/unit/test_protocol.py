"""A protocol is checked, laid out, written and drawn; the shipped ones are sound."""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from calibration.report.checklist import cred_nf
from calibration.report.planned import planned
from calibration.report.regulation import feedback_rule
from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.check import check
from rtdecode.derivatives import read_table
from rtdecode.errors import SettingsError
from rtdecode.process.kept_runs import calibration_runs
from rtdecode.protocol_file import read_protocol
from rtdecode.protocols.cli import EXAMPLES
from rtdecode.protocols.design import lay_out
from rtdecode.publish.publisher import Publisher
from rtdecode.session.journal import Journal
from rtdecode.settings import Settings, parse
from tests.conftest import FakeClock
from tests.unit.test_wire import ListLog, ListTransport

SHIPPED = sorted(EXAMPLES.glob("*.toml"))


def raw(**changes: Any) -> dict[str, Any]:
    run = {
        "name": "regulation",
        "purpose": "feedback",
        "start_s": 10.0,
        "cycles": 2,
        "blocks": [
            {"condition": "regulate", "duration_s": 20.0, "feedback": "continuous"},
            {"condition": "rest", "duration_s": 10.0},
        ],
    }
    return {
        "format": 1, "name": "p", "version": "1", "task": "t", "t_r_s": 2.0, "runs": [run],
        "feedback": {"score": "region", "regions": ["ffa"]}, **changes,
    }  # fmt: skip


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "protocol.toml"
    path.write_text(tomli_w.dumps(content))
    return path


# the shipped ones -----------------------------------------------------------------------------------------------


def test_five_kinds_of_experiment_are_shipped() -> None:
    names = ["calibration", "decoded-neurofeedback", "imagery", "perception", "region-feedback"]
    assert [path.stem for path in SHIPPED] == names


@pytest.mark.parametrize(
    ("pictures", "without", "minutes"),
    [((2, 0), False, 5), ((4, 4), True, 23), ((6, 5), True, 30), ((12, 12), True, 60)],
)
def test_a_calibration_fits_the_minutes_that_its_first_lines_tell(
    pictures: tuple[int, int], without: bool, minutes: int, tmp_path: Path
) -> None:
    content = tomllib.loads((EXAMPLES / "calibration.toml").read_text())
    first, null, second, null_again = content["runs"]
    first["repeats"], second["repeats"] = pictures[0], max(pictures[1], 1)
    content["runs"] = [first, null, second, null_again] if without else [first]
    runs = lay_out(read_protocol(written(tmp_path, content)), "01")
    assert sum(run.volumes for run in runs) * content["t_r_s"] / 60 == pytest.approx(minutes, abs=0.5)
    conditions = Counter(row.condition for run in runs for row in run.rows)
    assert conditions.pop("null", 0) == (60 if without else 0)
    assert sum(conditions.values()) == 30 * sum(pictures)
    assert all({row.condition for row in run.rows} == {"null"} for run in runs if "without" in run.plan.name)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_protocol_is_sound(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = read_protocol(path)
    assert main(["protocol", "check", str(path)]) == 0
    assert f"[{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}]" in capsys.readouterr().out
    assert main(["protocol", "show", str(path), "--figure", str(tmp_path / "design.png")]) == 0
    assert (tmp_path / "design.png").read_bytes().startswith(b"\x89PNG")
    assert main(["protocol", "example", path.stem]) == 0
    assert capsys.readouterr().out.endswith(path.read_text())
    for run in lay_out(protocol, "01"):
        ends = [row.onset_s + row.duration_s for row in run.rows]
        assert all(later.onset_s >= end - 1e-6 for end, later in zip(ends, run.rows[1:], strict=False))
        assert ends[-1] <= run.volumes * protocol.t_r_s + 1e-6
    trials = [row.trial for run in lay_out(protocol, "01") for row in run.rows if row.trial is not None]
    assert len(set(trials)) == len(trials)


# what is wrong --------------------------------------------------------------------------------------------------


def block(**changes: Any) -> list[dict[str, Any]]:
    return [{**raw()["runs"][0], "blocks": [{"condition": "regulate", "duration_s": 20.0, **changes}]}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format: expected 1, got 2"),
        ({"t_r_s": 0.0}, "t_r_s: expected float > 0.0"),
        ({"colour": "red"}, "colour: expected no such field"),
        ({"runs": []}, "runs: expected array of length >= 1"),
        ({"runs": block(duration_s=-1.0, feedback="continuous")}, "runs[0].blocks[0].duration_s: expected float > 0.0"),
        ({"runs": block(feedback="always")}, "runs[0].blocks[0].feedback: expected one of"),
        ({"runs": block()}, "runs[0] (regulation): purpose: expected a block with feedback"),
        ({"runs": block(stimuli=["cats"], feedback="after")}, "blocks[0].stimuli: expected names of [stimuli] (none)"),
        ({"runs": block(condition="", feedback="after")}, "expected one where nothing is shown"),
        ({"runs": block(pause_s=[3.0, 2.0], feedback="after")}, "expected the shortest before the longest"),
        ({"runs": block(paired=True, feedback="after")}, "paired: expected one trial after one that shows a set"),
        ({"runs": [{**raw()["runs"][0], "purpose": "transfer"}]}, "expected no block with feedback in a transfer run"),
        ({"runs": [{**raw()["runs"][0], "purpose": "calibration"}]}, "expected none in a calibration run"),
        ({"runs": [{**raw()["runs"][0], "volumes": 30}]}, "expected 35 or more for blocks of up to 70 s, got 30"),
        (
            {"runs": [raw()["runs"][0], {**block()[0], "purpose": "calibration"}]},
            "runs[1] (regulation): purpose: expected calibration runs before all others",
        ),
        ({"stimuli": {"a": ["x", "x"]}}, "stimuli.a: expected each stimulus once"),
        ({"feedback": {"score": "region"}}, "feedback.regions: expected 1 for the score region"),
        ({"feedback": {"score": "category", "target": "cat"}}, "feedback.target: expected a set of stimuli (none)"),
        ({"feedback": {}}, "blocks[0].feedback: expected a score in [feedback], got none"),
        ({"feedback": {"score": "no"}}, "feedback.score: expected one of"),
        ({"sham": {"kind": "other"}}, "sham.regions: expected 1 others than ['ffa'], got []"),
        ({"sham": {"kind": "strange"}}, "sham.kind: expected one of"),
        ({"questions": [{"entry": "4a", "ask": "?"}]}, "questions[0].entry: expected one of"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, raw(**changes))
    assert main(["protocol", "check", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_what_a_report_will_lack_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [{"entry": entry, "ask": "?"} for entry in ("1a", "1b", "2c", "2e", "3a", "3b", "6a", "6b")]
    assert main(["protocol", "check", str(written(tmp_path, raw(questions=questions)))]) == 0
    assert "'not stated' in a report: 3c\n" in capsys.readouterr().out


# in time --------------------------------------------------------------------------------------------------------


def shown() -> dict[str, Any]:
    sets = {"cat": ["cat1", "cat2", "cat3"], "dog": ["dog1", "dog2"]}
    blocks = [{"stimuli": ["cat", "dog"], "trials": 10, "duration_s": 2.0, "pause_s": [1.0, 3.0]}]
    runs = [{"name": "look", "purpose": "decoding", "repeats": 3, "start_s": 6.0, "tail_s": 8.0, "blocks": blocks}]
    return raw(stimuli=sets, runs=runs, feedback={})


def test_stimuli_come_equally_often_and_pauses_are_within_bounds(tmp_path: Path) -> None:
    protocol = read_protocol(written(tmp_path, shown()))
    runs = lay_out(protocol, "01")
    rows = [row for run in runs for row in run.rows]
    assert set(Counter(row.stimulus for row in rows).values()) == {6}
    assert {(row.condition, (row.stimulus or "")[:3]) for row in rows} == {("cat", "cat"), ("dog", "dog")}
    for run in runs:
        onsets = np.array([row.onset_s for row in run.rows])
        pauses = np.diff(onsets) - 2.0
        assert onsets[0] == 6.0
        assert ((pauses >= 1.0 - 1e-2) & (pauses <= 3.0 + 1e-2)).all()
        assert pauses.std() > 0.2
        assert all(one.stimulus != other.stimulus for one, other in zip(run.rows, run.rows[1:], strict=False))
        assert (run.volumes - 1) * 2.0 < onsets[-1] + 2.0 + 3.0 + 8.0
    assert lay_out(protocol, "01") == runs
    assert lay_out(protocol, "02") != runs


def test_rest_is_no_trial_and_a_frame_without_content_is_one(tmp_path: Path) -> None:
    blocks = [
        {"condition": "rest", "duration_s": 10.0},
        {"condition": "null", "stimuli": ["null"], "trials": 2, "duration_s": 2.0},
    ]
    content = raw(
        stimuli={"null": ["n1", "n2"]}, runs=[{"name": "r", "purpose": "decoding", "blocks": blocks}], feedback={}
    )
    (run,) = lay_out(read_protocol(written(tmp_path, content)), "01")
    assert [row.trial for row in run.rows] == [None, "r01t001", "r01t002"]
    assert [row.onset_s for row in run.rows] == [0.0, 10.0, 12.0]
    assert run.volumes == 7


def test_a_cue_is_followed_by_what_it_asks_for() -> None:
    protocol = read_protocol(EXAMPLES / "imagery.toml")
    asked = dict(zip(protocol.stimuli["cues"], protocol.stimuli["imagined"], strict=True))
    rows = [row for run in lay_out(protocol, "01")[6:] for row in run.rows]
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    assert len(pairs) == 4 * 18
    assert all(asked[cue.stimulus or ""] == imagined.stimulus for cue, imagined in pairs)


def test_events_and_conditions_tell_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, shown())
    out = tmp_path / "out"
    assert main(["protocol", "events", str(path), "--participant", "07", "--session", "b", "--out", str(out)]) == 0
    with (out / "sub-07_task-t_conditions.csv").open(newline="") as file:
        conditions = list(csv.DictReader(file))
    assert all(name.isidentifier() for name in conditions[0])
    found = []
    for run in (1, 2, 3):
        table, columns = read_table(out / f"sub-07/ses-b/func/sub-07_ses-b_task-t_run-{run:02d}_events.tsv")
        assert columns == ("onset", "duration", "trial_type", "trial", "stim_id")
        found += [(str(run), row["trial"], row["stim_id"], float(row["onset"])) for row in table]
    assert found == [(row["run"], row["trial"], row["stimulus"], float(row["onset_s"])) for row in conditions]
    assert (out / "sub-07/ses-b/func/sub-07_ses-b_task-t_run-01_events.json").is_file()


# in a session ---------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, **sections: Any) -> Settings:
    given = {
        "session": {"participant": "01", "protocol": "protocol.toml"},
        "scanner": {"export_dir": "."},
        "estimate": {"regions": {"ffa": "f.nii", "ppa": "p.nii"}},
    }
    return parse({**given, **sections}, root=tmp_path)


def test_a_session_takes_runs_and_score_from_its_protocol(tmp_path: Path) -> None:
    first = {"name": "c", "purpose": "calibration", "repeats": 3, "blocks": [{"condition": "x", "duration_s": 9.0}]}
    written(tmp_path, raw(runs=[first, raw()["runs"][0]]))
    found = settings(tmp_path)
    assert found.calibration.runs == 3
    assert (found.feedback.score, found.feedback.regions) == ("region", ("ffa",))


@pytest.mark.parametrize(
    ("sections", "changes", "said"),
    [
        ({"feedback": {"score": "none"}}, {}, "$.feedback: expected no such section beside session.protocol"),
        ({"calibration": {"runs": 2}}, {}, "$.calibration.runs: expected none beside session.protocol"),
        ({}, {"feedback": {"score": "region", "regions": ["v1"]}}, "expected names of estimate.regions (ffa, ppa)"),
        ({}, {"sham": {"kind": "other", "regions": ["v1"]}}, "sham.regions: expected names of estimate.regions"),
        ({"blinding": {"allocation": "a", "key": "k"}}, {}, "expected a section [sham] in session.protocol"),
        ({"blinding": {"allocation": "a"}}, {"sham": {"kind": "random_walk"}}, "$.blinding.key: expected the key"),
        ({"blinding": {"key": "a"}}, {}, "$.blinding.allocation: expected a file"),
        ({}, {"t_r_s": -1.0}, "$.session.protocol: "),
    ],
)
def test_one_thing_has_one_owner(sections: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    written(tmp_path, raw(**changes))
    with pytest.raises(SettingsError) as told:
        settings(tmp_path, **sections)
    assert said in str(told.value)


def test_every_message_names_the_protocol() -> None:
    transport = ListTransport()
    out = Publisher("s-01", FakeClock(), transport, ListLog(), "0123456789ab")
    for kind in (wire.Session, wire.Volume, wire.Heartbeat):
        out.publish(kind())
    assert [message.protocol for message in transport.sent] == ["0123456789ab"] * 3


def test_the_check_opens_the_seal_and_does_not_tell_the_arm(tmp_path: Path) -> None:
    path = written(tmp_path, raw(sham={"kind": "random_walk"}))
    people = ["--participants", "01", "02", "--out", str(tmp_path / "a.json"), "--key", str(tmp_path / "key")]
    assert main(["protocol", "allocate", str(path), *people]) == 0
    blinding = {"allocation": "a.json", "key": "key"}
    (found,) = [one for one in check(settings(tmp_path, blinding=blinding), FakeClock()) if one.subject == "protocol"]
    assert found.detail == f"p 1 [{read_protocol(path).hash}], blinded: the key opens the participant's seal"
    assert not found.problem
    (tmp_path / "key").write_text(bytes(32).hex())
    wrong = check(settings(tmp_path, blinding=blinding), FakeClock())
    assert "expected the key that the allocation" in next(one.problem for one in wrong if one.subject == "blinding")


def test_a_report_and_recorded_runs_take_the_protocol_of_the_session(tmp_path: Path) -> None:
    first = {"name": "c", "purpose": "calibration", "repeats": 3, "blocks": [{"condition": "x", "duration_s": 9.0}]}
    questions = [{"entry": "3b", "ask": "Strategy?", "answer": "none"}, {"entry": "1a", "ask": "Where?"}]
    written(tmp_path, raw(runs=[first, raw()["runs"][0]], questions=questions, sham={"kind": "random_walk"}))
    (tmp_path / "settings.toml").write_text("")
    (tmp_path / "journal").mkdir()
    with closing(Journal(tmp_path / "journal" / "inputs.journal", FakeClock())) as journal:
        assert calibration_runs(tmp_path) == 3
        assert feedback_rule(tmp_path) == "score region, regions ['ffa']"
        assert planned(tmp_path)["2a"] == "the protocol has a sham (random_walk); this session was open"
        journal.append("blinded", protocol="p", participant="01", nonce="n", hash="h")
    told = {entry.number: entry.says for entry in cred_nf(None, [], planned=planned(tmp_path))}
    assert (told["3b"], told["1a"], told["1b"]) == ("Strategy? none", "Where? not stated", "not stated")
    assert told["2a"] == "sham: random walk, protocol p 1"
    assert told["2b"].endswith("the seal has not been opened")
