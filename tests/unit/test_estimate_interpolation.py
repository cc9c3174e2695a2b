"""Smoothing and cubic B-splines against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rtdecode.estimate.interpolation import sample, sigma_voxels, smooth, spline_coefficients

SHAPES = [(20, 17, 13), (9, 30, 8), (16, 12, 2)]


def volume(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1000, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [*SHAPES, (12, 10, 1)])
def test_coefficients_equal_scipy(shape: tuple[int, int, int]) -> None:
    data = volume(shape)
    expected = ndimage.spline_filter(data.astype(np.float64), order=3, mode="mirror")
    np.testing.assert_allclose(spline_coefficients(data), expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_sampling_equals_scipy_inside_the_volume(shape: tuple[int, int, int]) -> None:
    data, rng = volume(shape), np.random.default_rng(1)
    points = rng.uniform(0, np.array(shape) - 1, (400, 3)).astype(np.float32)
    expected = ndimage.map_coordinates(data.astype(np.float64), points.T, order=3, mode="mirror")
    got = sample(spline_coefficients(data), points, np.eye(4))
    np.testing.assert_allclose(got, expected, atol=0.01)


def test_spline_passes_through_the_samples() -> None:
    data = volume((10, 11, 12))
    index = np.argwhere(np.ones(data.shape, bool)).astype(np.float32)
    np.testing.assert_allclose(sample(spline_coefficients(data), index, np.eye(4)), data.ravel(), atol=2e-3)


def test_points_outside_take_the_edge() -> None:
    data = volume((8, 8, 8))
    coefficients = spline_coefficients(data)
    outside = sample(coefficients, np.array([[-3, 2, 5], [4, 99, 7]], np.float32), np.eye(4))
    edge = sample(coefficients, np.array([[0, 2, 5], [4, 7, 7]], np.float32), np.eye(4))
    np.testing.assert_array_equal(outside, edge)


def test_matrix_moves_the_points() -> None:
    data = volume((8, 9, 10))
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    got = sample(spline_coefficients(data), np.array([[2, 2, 2]], np.float32), shift)
    np.testing.assert_allclose(got, data[3, 4, 5], atol=1e-3)


def test_smoothing_equals_scipy() -> None:
    data = volume((20, 17, 13))
    sigma = (0.8, 1.0, 0.5)
    expected = ndimage.gaussian_filter(data.astype(np.float64), sigma, mode="nearest", truncate=3.0)
    inner = (slice(4, -4),) * 3
    # scipy rounds the radius, we take the next larger one: the tails differ by less than 1 in 1000.
    np.testing.assert_allclose(smooth(data, sigma)[inner], expected[inner], rtol=5e-3)


def test_smoothing_leaves_its_input_and_constants_alone() -> None:
    data = np.full((6, 6, 1), 7.0, np.float32)
    before = data.copy()
    np.testing.assert_allclose(smooth(data, (1.0, 1.0, 1.0)), 7.0, rtol=1e-6)
    np.testing.assert_array_equal(data, before)


def test_width_is_in_voxels_of_each_axis() -> None:
    assert sigma_voxels(2.3548200450309493, np.diag([1.0, 2.0, 4.0, 1.0])) == pytest.approx((1.0, 0.5, 0.25))


def test_threads_share_the_points_and_change_nothing() -> None:
    rng = np.random.default_rng(9)
    volume = rng.standard_normal((9, 8, 7)).astype(np.float32)
    points = rng.uniform(-2, 10, (1001, 3)).astype(np.float32)
    alone = sample(spline_coefficients(volume), points, np.eye(4))
    np.testing.assert_array_equal(sample(spline_coefficients(volume), points, np.eye(4), threads=3), alone)
