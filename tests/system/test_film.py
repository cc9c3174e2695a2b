"""A simulated participant watches films: the daemon tells of every volume how well the brain matches, come what may."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import sys
import tomllib
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tomli_w
from msgspec import structs
from PIL import Image

from calibration.film_readout_fit import fit_session
from calibration.report.film_plots import strongest
from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.errors import BundleError, CalibrationError, ProtocolError, SettingsError
from rtdecode.evaluate.recorded_films import read_films
from rtdecode.packs.film_prediction import FilmPrediction, open_prediction, read_trunk, write_prediction
from rtdecode.packs.film_readout import open_readout
from rtdecode.publish import requests
from rtdecode.records import Command
from rtdecode.session.desk import Desk
from rtdecode.session.entries import CommandEntry, read_inputs
from rtdecode.session.films import open_films
from rtdecode.session.journal import read
from rtdecode.settings import Settings, parse
from rtdecode.simulate.acquisition import NoiseParameters
from rtdecode.simulate.film import FilmPlan, parcel_labels, predict_film, write_labels
from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.conftest import FakeClock
from tests.system.line_harness import PROTOCOL, Killed, Recorder, Rig
from tests.system.test_resume import content, published

PLAN = FilmPlan(seed=3, runs=2, volumes_per_run=130, closed_s=((2, 96.0, 150.0),))
RESPONSES = ResponseParameters(n_responsive=120, lapses=0.0)


@pytest.fixture(scope="module")
def people() -> list[Participant]:
    """The participant, whom the prediction is of as well: how it goes is looked at here, not how well."""
    return [make_participant(PLAN.seed, PROTOCOL, RESPONSES)]


@pytest.fixture(scope="module")
def prepared(people: list[Participant], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    labels = parcel_labels(people[0], side_mm=20.0)
    write_labels(people[0], labels, folder / "parcels.nii.gz")
    people[0].write_region(folder / "region.nii.gz")
    for run in (1, 2):
        predicted = predict_film(PLAN, run, labels, people)
        write_prediction(folder / PLAN.film(run), with_model(predicted), trunk_of(predicted))
    return folder


def with_model(found: FilmPrediction) -> FilmPrediction:
    return replace(found, about=structs.replace(found.about, sources={"model": "m" * 64}))


def trunk_of(found: FilmPrediction) -> np.ndarray:
    """What heads might read: the prediction, mixed, and time courses that have nothing to do with it."""
    rng = np.random.default_rng(5)
    mixed = found.predicted @ rng.standard_normal((found.predicted.shape[1], 12))
    return np.hstack([mixed, rng.standard_normal((len(mixed), 8))]).astype(np.float32)


def columnwise(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of each column; 0 where one does not vary."""
    pairs = zip(one.T, other.T, strict=True)
    return np.array([np.corrcoef(a, b)[0, 1] if a.std() and b.std() else 0.0 for a, b in pairs])


PROTOCOL_TEXT = """
format = 1
name = "Films"
version = "1"
task = "film"
t_r_s = 1.5
film = {below_z = 1.0, volumes = 6, action = "pause"}
runs = [{name = "film", purpose = "decoding", repeats = 2, blocks = [{condition = "film", duration_s = 180.0}]}]
"""


def settings_for(prepared: Path, out: Path, protocol: str = PROTOCOL_TEXT) -> Settings:
    (out / "export").mkdir(parents=True)
    (out / "protocol.toml").write_text(protocol)
    raw = {
        "session": {"participant": "sim", "output": ".", "seed": 3, "protocol": "protocol.toml"},
        "scanner": {"export_dir": "export", "gap_timeout_s": 4.0, "watch": "polling"},
        "estimate": {
            "mask": str(prepared / "region.nii.gz"),
            "parcels": {"blocks": str(prepared / "parcels.nii.gz")},
        },
        "film": {
            "parcels": "blocks",
            "predictions": {PLAN.film(run): str(prepared / PLAN.film(run)) for run in (1, 2)},
        },
    }
    return parse(raw, root=out)


def watch(
    prepared: Path, people: list[Participant], out: Path, lost: frozenset[tuple[int, int]] = frozenset()
) -> tuple[Recorder, Path]:
    clock = FakeClock()
    settings = settings_for(prepared, out)
    rig = Rig(settings, clock)
    scanner = Scanner(PLAN, people[0], settings.scanner.export_dir, clock, speed=1.0, noise=NoiseParameters(spikes=0))

    def announce(message: dict[str, Any]) -> None:
        rig.request(requests.Event, **message)

    def lose(run: int, volume: int) -> None:
        if (run, volume) in lost:
            max(settings.scanner.export_dir.iterdir(), key=lambda path: path.name).unlink()

    scanner.play(PLAN.announcing(announce), lambda run: clock.sleep(10.0), lose)
    for _ in range(8):
        clock.sleep(1.0)
    return rig.recorder, rig.finish()


@pytest.fixture(scope="module")
def whole(prepared: Path, people: list[Participant], tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    return watch(prepared, people, tmp_path_factory.mktemp("whole"))


def test_every_volume_of_a_film_has_its_match(whole: tuple[Recorder, Path]) -> None:
    found = whole[0].of(wire.StimulusMatch)
    assert [(one.run, one.volume) for one in found] == [(run, v) for run in (1, 2) for v in range(PLAN.volumes_per_run)]
    assert [one.seq for one in found] == list(range(len(found)))
    assert all(one.final and one.film == PLAN.film(one.run) for one in found)
    assert all(one.invalid == "the film is not on" for one in found[:4])
    on = [one for one in found if one.invalid is None]
    assert len(on) > 0.9 * len(found)
    assert all(one.parcels > 20 and one.networks.keys() == {"Vis"} for one in on)


def test_the_first_film_calibrates_the_second(whole: tuple[Recorder, Path]) -> None:
    found = [one for one in whole[0].of(wire.StimulusMatch) if one.invalid is None]
    assert not any(one.calibrated for one in found if one.run == 1)
    assert all(one.calibrated for one in found if one.run == 2)
    assert max(one.claim for one in found if one.run == 1) >= 20


def test_the_match_falls_when_the_eyes_are_closed(whole: tuple[Recorder, Path]) -> None:
    found = {(one.run, one.volume): one for one in whole[0].of(wire.StimulusMatch) if one.invalid is None}
    followed = [found[2, volume].rank for volume in range(44, 64)]
    closed = [found[2, volume].rank for volume in range(84, 100)]
    assert np.mean(followed) > 0.9
    assert np.mean(closed) < np.mean(followed) - 0.2


def test_after_kills_every_volume_has_one_match_with_the_same_bytes(
    whole: tuple[Recorder, Path],
    prepared: Path,
    people: list[Participant],
    tmp_path: Path,
    kill_at: Callable[[list[int], random.Random], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = whole[1]
    outputs = list(read(reference / "journal" / "outputs.journal"))
    inputs = sum(1 for _ in read(reference / "journal" / "inputs.journal"))
    own = [place for place, record in enumerate(outputs) if record["topic"] == "stimulusmatch"]
    rng = random.Random(4)
    kill_at(sorted(inputs + place for place in rng.sample(own, 2)), rng)
    carry_out, deaths = Desk._carry_out, iter([True])

    def dying(self: Desk, command: Command) -> dict[str, Any]:
        if next(deaths, False):
            raise Killed  # the rule has decided, and nothing of it is on the disk
        return carry_out(self, command)

    monkeypatch.setattr(Desk, "_carry_out", dying)
    _, folder = watch(prepared, people, tmp_path)
    assert content(published(folder, "stimulusmatch")) == content(published(reference, "stimulusmatch"))
    assert next(deaths, None) is None
    assert [one.token for one in commands(folder)] == [one.token for one in commands(reference)]


def test_the_rule_pauses_a_film_that_is_no_longer_followed(whole: tuple[Recorder, Path]) -> None:
    found = [one for one in whole[0].of(wire.StimulusMatch) if one.run == 2]
    usable = [one for one in found if one.invalid is None]
    low = [one.window == 20 and one.z < 1.0 for one in usable]
    (first, *_) = [place for place in range(5, len(low)) if all(low[place - 5 : place + 1])]
    at = usable[first].volume
    assert 64 < at < 100  # the eyes are closed from volume 64 to 100
    assert [one.asks for one in found] == ["pause" if one.volume >= at else "" for one in found]
    assert not any(one.asks for one in whole[0].of(wire.StimulusMatch) if one.run == 1)
    (decided,) = commands(whole[1])
    assert (decided.command, decided.token) == ("pause", f"film rule, run 2, volume {at}")
    assert "film film2 is not followed: its match was below 1 for 6 volumes" in decided.reason
    assert [one.paused for one in whole[0].of(wire.Session)][-1]


def commands(folder: Path) -> list[CommandEntry]:
    return [one for one in read_inputs(folder / "journal" / "inputs.journal") if isinstance(one, CommandEntry)]


@pytest.mark.parametrize("nilearn", [True, False])
def test_the_report_shows_the_measured_brain_beside_the_predicted_one(
    whole: tuple[Recorder, Path],
    prepared: Path,
    tmp_path: Path,
    nilearn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not nilearn:
        monkeypatch.setitem(sys.modules, "nilearn.plotting", None)
    assert main(["report", str(whole[1]), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    pictures = re.findall(r'<img class="brain" alt="([^"]*)" src="data:image/png;base64,([^"]*)">', text)
    each = ["measured", "predicted", "measured", "predicted", "correlation over time"]
    assert [alt for alt, _ in pictures] == 2 * each
    drawn = [np.asarray(Image.open(BytesIO(b64decode(content))).convert("RGB"), np.int64) for _, content in pictures]
    assert all((one.max(2) - one.min(2) > 60).sum() > 100 for one in drawn)  # something in colour
    assert 'src="http' not in text
    films = json.loads((tmp_path / "report.json").read_text())["films"]
    assert [(one["film"], one["run"], one["asked"]) for one in films] == [("film1", 1, ""), ("film2", 2, "pause")]
    told = {one.volume: one for one in whole[0].of(wire.StimulusMatch) if one.run == 2}
    second = films[1]
    for volume, z, network in zip(second["volumes"], second["z"], second["networks"]["Vis"], strict=True):
        one = told[volume]
        assert (z, network) == ((one.z, one.networks["Vis"]) if one.invalid is None else (None, None))
    truth = open_prediction(prepared / "film2")
    recorded = read_films(whole[1])[1]
    names = list(second["correlation"])
    values, on = recorded.at_volumes(truth.predicted[:, [truth.about.parcels.index(n) for n in names]], PLAN.t_r_s)
    expected = columnwise(values[on], recorded.measured[on][:, [recorded.parcels.index(n) for n in names]])
    np.testing.assert_allclose(list(second["correlation"].values()), expected, atol=1e-8)


def test_a_report_without_the_prediction_says_so(
    whole: tuple[Recorder, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "sub-sim_ses-01"
    shutil.copytree(whole[1], own)
    settings = tomllib.loads((own / "settings.toml").read_text())
    settings["film"]["predictions"] = {"film1": "gone/film1"}
    (own / "settings.toml").write_text(tomli_w.dumps(settings))
    assert main(["report", str(own)]) == 0
    text = (own / "report" / "report.html").read_text()
    assert "gone/film1: expected a sealed folder" in text
    assert "the settings name no prediction or label image" in text
    assert text.count("stimulus match over time") == 2


def test_what_is_strongest_along_an_axis_keeps_its_sign() -> None:
    volume = np.random.default_rng(0).standard_normal((4, 5, 6))
    for axis in range(3):
        low, high = volume.min(axis), volume.max(axis)
        np.testing.assert_array_equal(strongest(volume, axis), np.where(-low > high, low, high))


def test_lost_volumes_do_not_shift_the_film(
    whole: tuple[Recorder, Path], prepared: Path, people: list[Participant], tmp_path: Path
) -> None:
    lost = frozenset((1, volume) for volume in (50, 51, 80))
    found = watch(prepared, people, tmp_path, lost)[0].of(wire.StimulusMatch)
    assert {(one.run, one.volume) for one in found} == {
        (one.run, one.volume) for one in whole[0].of(wire.StimulusMatch)
    } - lost
    ranks = [one.rank for one in found if one.run == 1 and one.volume > 85 and one.invalid is None]
    assert np.mean(ranks) > 0.9


def test_a_session_is_not_resumed_with_another_prediction_or_atlas(prepared: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(prepared, own)
    settings = settings_for(own, tmp_path / "out")
    rig = Rig(settings, FakeClock())
    rig.leave()
    began = open_prediction(own / "film1")
    again = write_prediction(own / "film1", replace(began, predicted=2 * began.predicted))
    with pytest.raises(SettingsError) as refused:
        Rig(settings, FakeClock(), resume=True)
    (problem,) = refused.value.problems
    assert problem.startswith(f"$.film.predictions.film1: expected content {began.identity} as when the session began")
    assert f"got {again}:" in problem
    shutil.rmtree(own)
    shutil.copytree(prepared, own)
    Rig(settings, FakeClock(), resume=True).leave()
    digest = hashlib.sha256((own / "parcels.nii.gz").read_bytes()).hexdigest()
    image = nib.load(own / "parcels.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), own / "parcels.nii.gz")
    other = hashlib.sha256((own / "parcels.nii.gz").read_bytes()).hexdigest()
    with pytest.raises(SettingsError, match=rf"estimate\.parcels\.blocks: expected content {digest} .* got {other}"):
        Rig(settings, FakeClock(), resume=True)


def test_a_film_that_nobody_predicted_is_refused_before_it_counts(prepared: Path, tmp_path: Path) -> None:
    rig = Rig(settings_for(prepared, tmp_path), FakeClock())
    with pytest.raises(ProtocolError, match=r"film 'other': expected one of film.predictions in the settings: film1"):
        rig.request(requests.Event, kind="film", run=1, stimulus="other", onset_s=0.0)
    rig.leave()


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ('action = "switch"', r"film.film: expected the name of a film for switch alone, got '' for switch"),
        ('action = "pause", film = "film1"', r"film.film: expected the name of a film for switch alone, got 'film1'"),
        ('action = "switch", film = "calm"', r"film.film: expected one of film.predictions, got 'calm'"),
    ],
)
def test_a_rule_that_cannot_be_carried_out_is_refused(prepared: Path, tmp_path: Path, rule: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        settings_for(prepared, tmp_path / "out", PROTOCOL_TEXT.replace('action = "pause"', rule))


def test_settings_that_do_not_fit_together_are_refused(prepared: Path, tmp_path: Path) -> None:
    raw = {
        "session": {"participant": "sim"},
        "scanner": {"export_dir": "export"},
        "film": {"predictions": {"film1": str(prepared / "film1")}},
    }
    with pytest.raises(SettingsError, match=r"\$\.film\.parcels: expected a label image of estimate\.parcels \(none\)"):
        parse(raw, root=tmp_path)
    with pytest.raises(BundleError, match="expected a sealed folder"):
        open_films(parse({**raw, "film": {}}, root=tmp_path).film.__class__(predictions={"a": tmp_path / "no"}))


def test_parcels_that_are_not_predicted_are_told_of(prepared: Path, people: list[Participant], tmp_path: Path) -> None:
    settings = settings_for(prepared, tmp_path)
    image = nib.load(prepared / "parcels.nii.gz")
    shifted = np.where(np.asarray(image.dataobj) > 0, np.asarray(image.dataobj) + 500, 0).astype(np.int16)
    nib.save(nib.Nifti1Image(shifted, image.affine), tmp_path / "other.nii.gz")
    raw_settings = settings.estimate.parcels
    assert isinstance(raw_settings, dict)
    raw_settings["blocks"] = tmp_path / "other.nii.gz"
    clock = FakeClock()
    rig = Rig(settings, clock)
    plan = FilmPlan(seed=3, runs=1, volumes_per_run=12)
    scanner = Scanner(plan, people[0], settings.scanner.export_dir, clock, speed=1.0)

    def announce(message: dict[str, Any]) -> None:
        rig.request(requests.Event, **message)

    scanner.play(plan.announcing(announce))
    clock.sleep(8.0)
    rig.finish()
    (fault,) = [one for one in rig.recorder.of(wire.Fault) if one.part == "film"]
    assert "expected 8 parcels or more that are both predicted and measured, got 0 of" in fault.reason
    found = rig.recorder.of(wire.StimulusMatch)
    assert len(found) == 12
    assert all("got 0 of" in (one.invalid or "") for one in found)


def test_a_participants_own_parcels_are_fitted_to_the_film_they_watched(
    whole: tuple[Recorder, Path], prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = whole[1]
    assert (
        main(["fit-encoder", str(session), "--film", f"film1={prepared / 'film1'}", "--out", str(tmp_path / "own")])
        == 0
    )
    found = open_readout(tmp_path / "own")
    first, second = read_films(session)
    assert found.about.participant == "sim"
    assert found.about.parcels == list(first.parcels)
    assert found.about.films == {"film1": open_prediction(prepared / "film1").identity}
    used = [one for one in whole[0].of(wire.StimulusMatch) if one.run == 1 and one.invalid != "the film is not on"]
    assert found.about.volumes == sum("left out" not in (one.invalid or "") for one in used)
    assert f"{len(found.held_out)} parcels, held-out correlation" in capsys.readouterr().out
    truth = open_prediction(prepared / "film2")
    true = truth.predicted[:, [truth.about.parcels.index(name) for name in found.about.parcels]]
    values, on = second.at_volumes(true, PLAN.t_r_s)
    responds = columnwise(values[on], second.measured[on]) > 0.3  # in the other film, which was not learned from
    assert responds.sum() >= 8
    assert found.held_out[responds].mean() > 0.2 > found.held_out[~responds].mean()
    assert columnwise(found(read_trunk(prepared / "film2")), true)[responds].mean() > 0.5
    with pytest.raises(CalibrationError, match="expected that film 'other' was shown and announced in it"):
        fit_session(session, {"other": prepared / "film2"})
