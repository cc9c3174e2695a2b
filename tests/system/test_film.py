"""A simulated participant watches films: the daemon tells of every volume how well the brain matches, come what may."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from msgspec import structs

from calibration.film_readout_fit import fit_session
from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.errors import BundleError, CalibrationError, ProtocolError, SettingsError
from rtdecode.evaluate.recorded_films import read_films
from rtdecode.packs.film_prediction import FilmPrediction, open_prediction, read_trunk, write_prediction
from rtdecode.packs.film_readout import open_readout
from rtdecode.publish import requests
from rtdecode.session.films import open_films
from rtdecode.session.journal import read
from rtdecode.settings import Settings, parse
from rtdecode.simulate.acquisition import NoiseParameters
from rtdecode.simulate.film import FilmPlan, parcel_labels, predict_film, write_labels
from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from tests.conftest import FakeClock
from tests.system.line_harness import PROTOCOL, Recorder, Rig
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


def settings_for(prepared: Path, out: Path) -> Settings:
    (out / "export").mkdir(parents=True)
    raw = {
        "session": {"participant": "sim", "output": ".", "seed": 3},
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
) -> None:
    reference = whole[1]
    outputs = list(read(reference / "journal" / "outputs.journal"))
    inputs = sum(1 for _ in read(reference / "journal" / "inputs.journal"))
    own = [place for place, record in enumerate(outputs) if record["topic"] == "stimulusmatch"]
    rng = random.Random(4)
    kill_at(sorted(inputs + place for place in rng.sample(own, 2)), rng)
    _, folder = watch(prepared, people, tmp_path)
    assert content(published(folder, "stimulusmatch")) == content(published(reference, "stimulusmatch"))


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
