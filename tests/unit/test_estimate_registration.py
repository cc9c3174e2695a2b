"""Rigid registration on phantoms of known motion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtdecode.estimate import registration
from rtdecode.estimate.registration import Registrar, resample, rigid_matrix, rigid_parameters

SHAPE = (40, 44, 30)
ZOOMS = (3.4, 3.4, 3.8)
TSNR = 80.0
TEXTURE_MM = 2.5


def oblique_affine() -> np.ndarray:
    turn = rigid_matrix(np.array([0, 0, 0, 0.3, -0.1, 0.2]), np.zeros(3))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 1.0, 1.0]) @ np.diag(ZOOMS)
    affine[:3, 3] = 5.0 - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


class Phantom:
    """A textured ellipsoid at 2.5 mm, rendered with scipy wherever it has moved to."""

    def __init__(self, seed: int = 3) -> None:
        n = 60
        rng = np.random.default_rng(seed)
        texture = ndimage.gaussian_filter(rng.standard_normal((n, n, n)), 2.0)
        grid = (np.arange(n) - (n - 1) / 2) * TEXTURE_MM
        x, y, z = np.meshgrid(grid, grid, grid, indexing="ij")
        radius = np.sqrt((x / 50) ** 2 + (y / 55) ** 2 + (z / 42) ** 2)
        head = 1000 * (1 + 0.25 * texture / texture.std()) / (1 + np.exp(40 * (radius - 1)))
        self._coefficients = ndimage.spline_filter(head, 3, mode="mirror")
        self._centre = (n - 1) / 2
        self.affine = oblique_affine()

    def render(self, matrix: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        index = np.indices(SHAPE).reshape(3, -1)
        here = self.affine[:3, :3] @ index + self.affine[:3, 3:]
        back = np.linalg.inv(matrix)
        there = back[:3, :3] @ here + back[:3, 3:] - 5.0
        at = there / TEXTURE_MM + self._centre
        data = ndimage.map_coordinates(self._coefficients, at, order=3, prefilter=False, mode="nearest")
        if rng is not None:
            data = np.abs(data + 1000 / TSNR * rng.standard_normal(data.shape))
        return data.reshape(SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom()


def brain_points(registrar: Registrar) -> np.ndarray:
    corners = np.array(np.meshgrid([-40, 0, 40], [-45, 0, 45], [-35, 0, 35])).reshape(3, -1).T
    return corners + registrar.centre


def displacement_error(registrar: Registrar, found: np.ndarray, true: np.ndarray) -> float:
    points = brain_points(registrar)
    off = points @ (found - true)[:3, :3].T + (found - true)[:3, 3]
    return float(np.linalg.norm(off, axis=1).mean())


def test_small_motion_is_found(phantom: Phantom) -> None:
    rng = np.random.default_rng(0)
    registrar = Registrar(phantom.render(np.eye(4), rng), phantom.affine)
    errors = []
    for _ in range(12):
        motion = np.concatenate([rng.uniform(-3, 3, 3), np.deg2rad(rng.uniform(-3, 3, 3))])
        true = rigid_matrix(motion, registrar.centre)
        fit = registrar.estimate(phantom.render(true, rng))
        assert fit.converged
        errors.append(displacement_error(registrar, fit.matrix, true))
    assert np.median(errors) < 0.03
    assert max(errors) < 0.06


@pytest.mark.parametrize("axis", range(6))
def test_large_motion_is_captured(phantom: Phantom, axis: int) -> None:
    rng = np.random.default_rng(axis)
    registrar = Registrar(phantom.render(np.eye(4), rng), phantom.affine)
    motion = np.zeros(6)
    motion[axis] = 15.0 if axis < 3 else np.deg2rad(15.0)
    true = rigid_matrix(motion, registrar.centre)
    fit = registrar.estimate(phantom.render(true, rng))
    assert displacement_error(registrar, fit.matrix, true) < 0.1


def test_registration_undoes_motion(phantom: Phantom) -> None:
    still = phantom.render(np.eye(4), None)
    registrar = Registrar(still, phantom.affine)
    true = rigid_matrix(np.array([1.3, -0.7, 0.9, 0.02, -0.03, 0.01]), registrar.centre)
    moved = phantom.render(true, None)
    fit = registrar.estimate(moved)
    index = np.argwhere(still > 700)
    index = index[((index > 5) & (index < np.array(SHAPE) - 6)).all(1)]
    points = (index @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]).astype(np.float32)
    expected = still[tuple(index.T)]

    def left(matrix: np.ndarray) -> float:
        return float(np.abs(resample(moved, phantom.affine, points, matrix) - expected).mean())

    # What the true motion leaves is interpolation error.
    assert left(fit.matrix) < 1.2 * left(true)
    assert left(fit.matrix) < 0.1 * left(np.eye(4))


def test_the_reference_does_not_move(phantom: Phantom) -> None:
    still = phantom.render(np.eye(4), None)
    fit = Registrar(still, phantom.affine).estimate(still)
    np.testing.assert_allclose(fit.matrix, np.eye(4), atol=1e-4)
    assert fit.correlation > 0.99999


@pytest.mark.parametrize("axis", range(6))
def test_small_motion_is_neither_exaggerated_nor_damped(phantom: Phantom, axis: int) -> None:
    registrar = Registrar(phantom.render(np.eye(4), None), phantom.affine)
    motion = np.zeros(6)
    motion[axis] = 0.2 if axis < 3 else 0.004
    fit = registrar.estimate(phantom.render(rigid_matrix(motion, registrar.centre), None))
    assert rigid_parameters(fit.matrix, registrar.centre)[axis] == pytest.approx(motion[axis], rel=0.02)


def test_overall_gain_is_not_motion(phantom: Phantom) -> None:
    still = phantom.render(np.eye(4), None)
    registrar = Registrar(still, phantom.affine)
    fit = registrar.estimate(1.05 * still)
    assert displacement_error(registrar, fit.matrix, np.eye(4)) < 0.005


def test_the_active_region_can_be_left_out(phantom: Phantom) -> None:
    still = phantom.render(np.eye(4), None)
    active = np.zeros(SHAPE, bool)
    active[:, :14, 8:22] = True
    excited = np.where(active, 1.5 * still, still).astype(np.float32)
    spared = Registrar(still, phantom.affine, exclude=ndimage.binary_dilation(active, iterations=2))
    assert displacement_error(spared, spared.estimate(excited).matrix, np.eye(4)) < 0.02


def test_a_head_in_another_position_is_found(phantom: Phantom) -> None:
    """Another visit: farther than a head moves within one."""
    rng = np.random.default_rng(2)
    registrar = Registrar(phantom.render(np.eye(4), rng), phantom.affine)
    true = rigid_matrix(np.array([9.0, -22.0, 14.0, 0.15, -0.1, 0.12]), registrar.centre)
    fit = registrar.estimate(phantom.render(true, rng))
    assert fit.converged
    assert displacement_error(registrar, fit.matrix, true) < 0.15


def test_dropout_that_stays_while_the_head_moves_counts_less(phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.indices(SHAPE).reshape(3, -1)
    here = (phantom.affine[:3, :3] @ index + phantom.affine[:3, 3:]).T
    field = (1 - 0.7 * np.exp(-((here - [0, 35, -20]) ** 2).sum(1) / 450)).reshape(SHAPE).astype(np.float32)
    still = phantom.render(np.eye(4), None)
    errors = {}
    for power in (0, registration._DROPOUT_POWER):
        monkeypatch.setattr(registration, "_DROPOUT_POWER", power)
        registrar = Registrar(field * still, phantom.affine)
        true = rigid_matrix(np.array([1.0, -1.5, 2.0, 0.03, 0.0, 0.02]), registrar.centre)
        moved = field * phantom.render(true, None)
        errors[power] = displacement_error(registrar, registrar.estimate(moved).matrix, true)
    assert errors[registration._DROPOUT_POWER] < errors[0]


def test_noise_is_answered_with_the_last_position(phantom: Phantom) -> None:
    rng = np.random.default_rng(1)
    registrar = Registrar(phantom.render(np.eye(4), rng), phantom.affine)
    true = rigid_matrix(np.array([0.5, 0.2, -0.4, 0.01, 0.0, 0.0]), registrar.centre)
    before = registrar.estimate(phantom.render(true, rng))
    empty = registrar.estimate(np.zeros(SHAPE, np.float32))
    assert not empty.converged
    np.testing.assert_array_equal(empty.matrix, before.matrix)


def test_another_affine_of_the_volume_is_not_motion(phantom: Phantom) -> None:
    still = phantom.render(np.eye(4), None)
    registrar = Registrar(still, phantom.affine)
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = SHAPE[0] - 1
    fit = registrar.estimate(still[::-1], phantom.affine @ flip)
    assert displacement_error(registrar, fit.matrix, np.eye(4)) < 0.01


def test_a_slab_is_refused(phantom: Phantom) -> None:
    slab = phantom.render(np.eye(4), None)[:, :, 13:17]
    with pytest.raises(ValueError, match=r"set estimate\.registration to"):
        Registrar(slab, phantom.affine)


angles = st.floats(-1.0, 1.0)
lengths = st.floats(-50.0, 50.0)


@settings(max_examples=50, deadline=None)
@given(st.tuples(lengths, lengths, lengths, angles, angles, angles), st.tuples(lengths, lengths, lengths))
def test_parameters_and_matrix_are_inverse(motion: tuple[float, ...], centre: tuple[float, ...]) -> None:
    matrix = rigid_matrix(np.array(motion), np.array(centre))
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rigid_parameters(matrix, np.array(centre)), motion, atol=1e-9)
