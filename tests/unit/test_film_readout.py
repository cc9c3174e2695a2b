"""A new participant's own parcels from what a film encoder's heads read: against scikit-learn, and held out in time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from calibration.film_readout_fit import BLOCKS, GAP_S, fit_readout
from calibration.ridge import N_PENALTIES, Spectrum, penalties
from engines.film.encoding import FilmOrder, encode_film
from rtdecode.__main__ import main
from rtdecode.decode.networks.build import load
from rtdecode.errors import BundleError, CalibrationError, EngineError
from rtdecode.packs.film_prediction import open_prediction, read_trunk, write_prediction
from rtdecode.packs.film_readout import FilmReadout, ReadoutTable, open_readout, write_readout
from tests.film_small import SHAPE, small_features, small_pack

T_R_S = 1.5
N, H, P = 110, 16, 4


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Red noise: neighbours in time resemble each other."""
    values = rng.standard_normal(shape)
    for i in range(1, len(values)):
        values[i] = 0.8 * values[i - 1] + 0.6 * values[i]
    return values


class World:
    """Parcels that answer linearly to the trunk, the last one to nothing."""

    def __init__(self, runs: int = 2, noise: float = 0.5) -> None:
        rng = np.random.default_rng(0)
        self.trunk = smooth(rng, (N * runs, H)) + 3
        self.run = np.repeat(np.arange(1, runs + 1), N)
        self.time_s = np.tile(np.arange(N) * T_R_S, runs)
        maps = rng.standard_normal((H, P)) / np.sqrt(H)
        maps[:, -1] = 0
        self.measured = 7 + self.trunk @ maps + noise * smooth(rng, (N * runs, P))

    def targets(self) -> np.ndarray:
        parts = [self.measured[self.run == run] for run in np.unique(self.run)]
        return np.concatenate([(one - one.mean(0)) / one.std(0) for one in parts])


def test_weights_are_those_of_ridge_regression() -> None:
    world = World()
    found = fit_readout(world.trunk, world.measured, world.run, world.time_s)
    for place in range(P):
        own = Ridge(alpha=found.penalties[place]).fit(world.trunk, world.targets()[:, place])
        np.testing.assert_allclose(found.weights[:, place], own.coef_, atol=1e-8)
        assert found.constant[place] == pytest.approx(own.intercept_, abs=1e-8)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_held_out_correlation_is_that_of_stretches_that_neither_fit_nor_penalty_has_seen(runs: int) -> None:
    world = World(runs)
    found = fit_readout(world.trunk, world.measured, world.run, world.time_s)
    targets = world.targets()
    parts = 1 if runs == 3 else -(-BLOCKS // runs)
    blocks = [np.array_split(np.flatnonzero(world.run == run), parts) for run in np.unique(world.run)]
    stretches = [one for some in blocks for one in some]

    def away(rows: np.ndarray, some: np.ndarray) -> np.ndarray:
        near = [
            i
            for i in rows
            if any(world.run[i] == world.run[j] and abs(world.time_s[i] - world.time_s[j]) < GAP_S for j in some)
        ]
        return np.setdiff1d(rows, near)

    def predicted(rest: np.ndarray, some: np.ndarray) -> list[np.ndarray]:
        centred = world.trunk[rest] - world.trunk[rest].mean(0)
        grid = penalties(Spectrum(centred @ centred.T, targets[rest]))
        return [Ridge(alpha=one).fit(world.trunk[rest], targets[rest]).predict(world.trunk[some]) for one in grid]

    kept, truth = np.zeros((len(targets), P)), np.zeros((len(targets), P))
    for out in stretches:
        rest = away(np.arange(len(targets)), out)
        error = np.zeros((N_PENALTIES, P))
        for inner in stretches:
            some = np.intersect1d(inner, rest)
            if len(some):
                left = away(rest, some)
                error += [np.square(one - targets[some]).sum(0) for one in predicted(left, some)]
        chosen = error.argmin(0)
        each = predicted(rest, out)
        own = np.stack([each[chosen[place]][:, place] for place in range(P)], 1)
        kept[out], truth[out] = own - own.mean(0), targets[out] - targets[out].mean(0)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(kept.T, truth.T, strict=True)]
    np.testing.assert_allclose(found.held_out, expected, atol=1e-6)
    assert found.held_out[:-1].mean() > 0.4
    assert found.held_out[-1] < found.held_out[:-1].min()


def test_too_little_of_a_film_is_refused() -> None:
    world = World(1)
    with pytest.raises(CalibrationError, match="expected 100 volumes of a film that was followed or more, got 60"):
        fit_readout(world.trunk[:60], world.measured[:60], world.run[:60], world.time_s[:60])
    with pytest.raises(CalibrationError, match="expected parcels that vary, got none"):
        fit_readout(world.trunk, np.ones((N, P)), world.run, world.time_s)


def readout(model: str, parcels: int = 3) -> FilmReadout:
    rng = np.random.default_rng(1)
    table = ReadoutTable(
        participant="nina",
        session="sub-nina_ses-01",
        model=model,
        films={"film": "0" * 64},
        parcels=[str(5 + place) for place in range(parcels)],
        networks=["Vis"] * parcels,
        volumes=200,
        runs=1,
    )
    return FilmReadout(
        about=table,
        weights=rng.standard_normal((SHAPE.hidden, parcels)).astype(np.float32),
        constant=rng.standard_normal(parcels).astype(np.float32),
        held_out=np.full(parcels, 0.3, np.float32),
        penalties=np.ones(parcels, np.float32),
    )


def test_a_film_is_predicted_for_a_fitted_participant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = small_pack(tmp_path, members=2)
    features = small_features(tmp_path / "film.features", 160.0)
    own = readout(pack.identity)
    identity = write_readout(tmp_path / "nina", own)
    order = ["encode", str(tmp_path / "film.features"), "--model", str(tmp_path / "pack"), "--no-ablation"]
    assert main([*order, "--subject", str(tmp_path / "nina"), "--out", str(tmp_path / "P")]) == 0
    found = open_prediction(tmp_path / "P")
    keep = torch.ones(1, 3)
    hidden = []
    for member in ("member_1", "member_2"):
        network = load(pack, member, device="cpu", dtype=torch.float32)
        parts = []
        for start in (-9, 289):
            given = [features.stretch(name, range(start, start + 298))[None] for name in ("text", "audio", "vision")]
            with torch.no_grad():
                parts.append(network(*given, keep).trunk[0].numpy())
        hidden.append(np.concatenate(parts)[: round(160.0 / 1.49)])
    np.testing.assert_allclose(read_trunk(tmp_path / "P"), np.mean(hidden, axis=0), atol=1e-4)
    expected = np.mean(hidden, axis=0) @ own.weights + own.constant
    np.testing.assert_allclose(found.predicted, expected, atol=1e-4)
    assert (found.about.subject, found.about.parcels) == ("nina", ["5", "6", "7"])
    assert found.about.networks == ["Vis"] * 3
    assert found.about.sources["readout"] == identity
    assert "107 volumes of 3 parcels" in capsys.readouterr().out


def test_a_prediction_without_what_the_heads_read_cannot_be_fitted_to(tmp_path: Path) -> None:
    pack, features = small_pack(tmp_path), small_features(tmp_path / "features", 160.0)
    write_prediction(tmp_path / "P", encode_film(pack, features, FilmOrder(ablate=False)).prediction)
    with pytest.raises(BundleError, match=r"expected trunk\.safetensors, what the model's heads read of the film"):
        read_trunk(tmp_path / "P")


def test_a_participant_who_was_fitted_to_another_pack_is_refused(tmp_path: Path) -> None:
    pack, features = small_pack(tmp_path), small_features(tmp_path / "features", 160.0)
    with pytest.raises(EngineError, match="expected a participant that was fitted to this pack"):
        encode_film(pack, features, FilmOrder(readout=readout("f" * 64)))
    with pytest.raises(EngineError, match="expected neither --parcels nor --scores with a fitted participant"):
        encode_film(pack, features, FilmOrder(readout=readout(pack.identity), parcels=["1"] * SHAPE.parcels))


def test_a_readout_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    own = readout("a" * 64)
    write_readout(tmp_path / "good", own)
    again = open_readout(tmp_path / "good")
    np.testing.assert_array_equal(again(np.eye(SHAPE.hidden)), own(np.eye(SHAPE.hidden)))
    write_readout(tmp_path / "bad", replace(own, weights=own.weights[:, :2].copy()))
    with pytest.raises(BundleError, match="expected 'weights' of 3 parcels"):
        open_readout(tmp_path / "bad")
