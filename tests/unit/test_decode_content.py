"""What responses say of a part of a picture, against the densities of the model that is turned round."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from rtdecode.decode.score.content import OTHERS, content, group_of, parts_of, penalty

RNG = np.random.default_rng(5)
VOXELS, WIDTHS = 9, (2, 3)
GROUP = np.repeat([0, 1], WIDTHS)
MAPS = RNG.standard_normal((sum(WIDTHS), VOXELS))
ROOT = RNG.standard_normal((VOXELS, VOXELS))
NOISE = ROOT @ ROOT.T + np.eye(VOXELS)
INVERSE = np.linalg.inv(NOISE)
INFORMATION = MAPS @ INVERSE @ MAPS.T
PICTURES = RNG.standard_normal((6, sum(WIDTHS)))


def told(responses: np.ndarray) -> np.ndarray:
    return responses @ INVERSE @ MAPS.T


def test_content_of_whole_pictures_is_their_mean_likelihood_against_the_average_one() -> None:
    responses = RNG.standard_normal((4, VOXELS))
    average = multivariate_normal(np.zeros(VOXELS), NOISE).logpdf(responses)
    each = [multivariate_normal(picture @ MAPS, NOISE).logpdf(responses) for picture in PICTURES]
    found = content(told(responses), PICTURES, INFORMATION)
    np.testing.assert_allclose(found, logsumexp(each, axis=0) - np.log(6) - average, rtol=1e-9)


def test_content_of_pictures_near_those_known_is_that_of_responses_to_them_drawn_at_random() -> None:
    """With all likelihoods twice as sure, as of noise of half the variance."""
    responses, near = RNG.standard_normal((4, VOXELS)), 0.7
    average = multivariate_normal(np.zeros(VOXELS), NOISE / 2).logpdf(responses)
    spread = NOISE / 2 + near * MAPS.T @ MAPS
    each = [multivariate_normal(picture @ MAPS, spread).logpdf(responses) for picture in PICTURES]
    found = content(told(responses), PICTURES, INFORMATION, near=near)
    np.testing.assert_allclose(found, logsumexp(each, axis=0) - np.log(6) - average, rtol=1e-9)


@pytest.mark.parametrize("number", [0, 1])
def test_content_of_a_part_is_that_with_the_other_components_integrated_out(number: int) -> None:
    own = number == GROUP
    spread = NOISE + OTHERS * MAPS[~own].T @ MAPS[~own]
    responses = RNG.standard_normal((4, VOXELS))
    average = multivariate_normal(np.zeros(VOXELS), spread).logpdf(responses)
    each = [multivariate_normal(picture @ MAPS[own], spread).logpdf(responses) for picture in PICTURES[:, own]]
    part = parts_of(INFORMATION, GROUP, 2)[number]
    found = content(told(responses), PICTURES, INFORMATION, part)
    np.testing.assert_allclose(found, logsumexp(each, axis=0) - np.log(6) - average, rtol=1e-9)
    np.testing.assert_allclose(penalty(part.information, np.eye(own.sum())), 0.5 * np.diag(part.information))


def test_a_group_that_calibration_never_varied_says_nothing() -> None:
    part = parts_of(INFORMATION, GROUP, 3)[2]
    assert not part.own.any()
    for near in (0.0, 1.0):
        found = content(told(RNG.standard_normal((4, VOXELS))), PICTURES, INFORMATION, part, near=near)
        np.testing.assert_array_equal(found, 0)


def test_what_one_group_says_is_hardly_taken_for_the_other() -> None:
    """Of strong content of one group alone, the other one's part is about as seldom high as of noise."""
    rng = np.random.default_rng(6)
    n, v = 4000, 60
    maps = 0.8 * rng.standard_normal((5, v))
    information = maps @ maps.T
    noise = rng.standard_normal((2, n, v))
    pictures = rng.standard_normal((40, 5))
    chosen = pictures[rng.integers(40, size=n)] * (GROUP == 0)
    whole, *_, part = (None, *parts_of(information, GROUP, 2))
    limits = [np.quantile(content(noise[0] @ maps.T, pictures, information, one), 0.95) for one in (whole, part)]
    shown = (noise[1] + chosen @ maps) @ maps.T
    passed = [
        np.mean(content(shown, pictures, information, one) > limit)
        for one, limit in zip((whole, part), limits, strict=True)
    ]
    assert passed[0] > 0.8
    assert passed[1] == pytest.approx(0.05, abs=0.03)


def test_the_group_of_a_component_is_where_its_row_lies() -> None:
    basis = np.zeros((3, 10))
    basis[0, 7], basis[1, 1], basis[2, 9] = -2.0, 0.1, 1.0
    assert group_of(basis, (slice(0, 4), slice(4, 10))).tolist() == [1, 0, 1]
    assert group_of(basis, ()).tolist() == [-1, -1, -1]
