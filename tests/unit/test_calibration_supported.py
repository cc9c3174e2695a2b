"""How many components of the pictures a visit supports, where the truth has so many."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.encoding.encoder import PriorOf
from calibration.encoding.maps import MapPrior
from calibration.regression import folds
from calibration.standing import HeldOut
from calibration.supported import COUNTS, USUAL, supported, told
from calibration.targets import make_targets

VALUES, VOXELS = 160, 120


def visit(n: int, rank: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of pictures that vary alike in all values, and responses that follow `rank` directions of these."""
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((n, VALUES)) * np.sqrt(np.where(np.arange(VALUES) < rank, 3.0, 1.0))
    maps = np.zeros((VALUES, VOXELS))
    maps[:rank] = rng.standard_normal((rank, VOXELS)) / np.sqrt(rank)
    responses = tokens @ maps + noise * rng.standard_normal((n, VOXELS))
    return tokens[:, :, None], (responses / responses.std(0)).astype(np.float32)


def chosen(tokens: np.ndarray, responses: np.ndarray) -> int:
    n = len(tokens)

    def described(count: int) -> tuple[np.ndarray, list[PriorOf]]:
        targets = make_targets(tokens, (slice(0, VALUES),), most=count)
        prior = MapPrior(covariance=np.diag(targets.variance / targets.variance.sum()))
        return targets.components, [lambda _: prior]

    return supported(responses, described, folds(np.arange(n), least=4), np.arange(n))


def test_few_are_chosen_where_the_truth_has_few_and_many_where_it_has_many() -> None:
    few = [chosen(*visit(160, 6, 4.0, seed)) for seed in range(2)]
    many = [chosen(*visit(240, 100, 3.0, seed)) for seed in range(2)]
    assert max(few) <= 16  # n / 8 would be 20, and 32 the least of before
    assert min(many) >= 64


def test_few_directions_are_no_obstacle_and_a_single_fold_chooses_nothing() -> None:
    rng = np.random.default_rng(0)
    tokens = np.zeros((40, VALUES, 1))
    tokens[:, :3, 0] = rng.standard_normal((40, 3))
    responses = rng.standard_normal((40, VOXELS)).astype(np.float32)
    assert chosen(tokens, responses) in COUNTS
    assert supported(responses, lambda _: (np.zeros((40, 0)), []), [np.arange(40)], np.arange(40)) == USUAL


def test_noise_keeps_the_usual_number() -> None:
    """Where held-out trials cannot tell numbers apart, chance would choose a small or a large one."""
    found = [chosen(*visit(48, 6, 200.0, seed)) for seed in range(4)]
    assert sum(count == USUAL for count in found) >= 3


def test_the_likelihood_is_that_of_the_picture_shown_among_those_of_its_fold() -> None:
    rng = np.random.default_rng(1)
    shown = np.array([4, 7, 4, 9])
    of_picture = {int(picture): rng.standard_normal(4) for picture in np.unique(shown)}
    scores = np.stack([of_picture[int(picture)] for picture in shown], axis=1)
    best = -np.inf
    for temperature in np.logspace(-2, 1, 31):
        total = 0.0
        for row, picture in enumerate(shown):
            among = {name: temperature * own[row] for name, own in of_picture.items()}
            total += among[int(picture)] - np.log(sum(np.exp(value) for value in among.values()))
        best = max(best, total)
    assert told(HeldOut(scores=(scores,), shown=(shown,))).sum() == pytest.approx(best)
