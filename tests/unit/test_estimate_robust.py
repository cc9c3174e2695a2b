"""What is no motion does not move the registration: responses, the coils' field, the gain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtdecode.estimate import robust
from rtdecode.estimate.inputs import scaled
from rtdecode.estimate.mask import brain_mask
from rtdecode.estimate.registration import Registrar, rigid_matrix
from rtdecode.estimate.robust import RobustStep
from rtdecode.process.recorded import read_runs
from rtdecode.records import Volume
from tests.unit.test_estimate_registration import Phantom, displacement_error

AXES = ("i", "j", "k")


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom()


def ramp(brain: np.ndarray, axis: int) -> np.ndarray:
    """Return a field that changes by 8 % across the brain along one axis."""
    place = np.indices(brain.shape)[axis]
    low, high = place[brain].min(), place[brain].max()
    return 1 + 0.08 * ((place - low) / (high - low) - 0.5)


def back(brain: np.ndarray) -> np.ndarray:
    """Return the posterior quarter of the brain: the second axis runs to the front."""
    place = np.indices(brain.shape)[1]
    return brain & (place < np.quantile(place[brain], 0.25))


def small_motion(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    return rigid_matrix(rng.uniform(-1, 1, 6) * [0.5, 0.5, 0.5, 0.01, 0.01, 0.01], centre)


@pytest.mark.parametrize("percent", [2.0, 5.0])
def test_a_response_of_the_back_is_not_motion(phantom: Phantom, percent: float) -> None:
    rng = np.random.default_rng(5)
    reference = phantom.render(np.eye(4), rng)
    registrar = Registrar(reference, phantom.affine)
    factor = 1 + percent / 100 * back(brain_mask(reference))
    errors = []
    for _ in range(5):
        true = small_motion(rng, registrar.centre)
        fit = registrar.estimate((factor * phantom.render(true, rng)).astype(np.float32))
        assert fit.converged
        errors.append(displacement_error(registrar, fit.matrix, true))
    assert np.median(errors) < 0.03


@pytest.mark.parametrize("gain", [1.0, 0.94])
@pytest.mark.parametrize("axis", range(3), ids=AXES)
def test_a_change_of_the_coils_field_is_not_motion(phantom: Phantom, axis: int, gain: float) -> None:
    rng = np.random.default_rng(axis)
    reference = phantom.render(np.eye(4), rng)
    registrar = Registrar(reference, phantom.affine)
    field = gain * ramp(brain_mask(reference), axis)
    errors = []
    for _ in range(5):
        true = small_motion(rng, registrar.centre)
        fit = registrar.estimate((field * phantom.render(true, rng)).astype(np.float32))
        assert fit.converged
        errors.append(displacement_error(registrar, fit.matrix, true))
    assert np.median(errors) < 0.03


def test_a_response_after_the_coils_field_has_changed_is_not_motion(phantom: Phantom) -> None:
    """The field is remembered: what comes on top of it stands out."""
    rng = np.random.default_rng(8)
    reference = phantom.render(np.eye(4), rng)
    registrar = Registrar(reference, phantom.affine)
    brain = brain_mask(reference)
    field = 0.94 * ramp(brain, 0)
    errors = []
    for percent in (0, 0, 5, 5, 0, 5):
        true = small_motion(rng, registrar.centre)
        factor = field * (1 + percent / 100 * back(brain))
        fit = registrar.estimate((factor * phantom.render(true, rng)).astype(np.float32))
        errors.append(displacement_error(registrar, fit.matrix, true))
    assert np.median(errors) < 0.03, errors


def test_another_gain_changes_nothing_but_rounding(phantom: Phantom) -> None:
    rng = np.random.default_rng(6)
    reference = phantom.render(np.eye(4), rng)
    centre = Registrar(reference, phantom.affine).centre
    volume = phantom.render(rigid_matrix(np.array([0.8, -0.4, 0.3, 0.01, -0.02, 0.01]), centre), rng)
    one, other = (Registrar(reference, phantom.affine).estimate(np.float32(g) * volume) for g in (1.0, 0.94))
    np.testing.assert_allclose(one.matrix, other.matrix, atol=2e-5)


def test_a_head_of_another_person_is_told(phantom: Phantom) -> None:
    """No field, block or outlier may explain another head away."""
    registrar = Registrar(phantom.render(np.eye(4), None), phantom.affine)
    own = registrar.estimate(phantom.render(np.eye(4), None))
    other = registrar.estimate(Phantom(seed=11).render(np.eye(4), None))
    assert own.correlation > 0.999
    assert not other.converged or other.correlation < 0.8


def test_a_head_upside_down_is_told(phantom: Phantom) -> None:
    still = phantom.render(np.eye(4), None)
    fit = Registrar(still, phantom.affine).estimate(np.ascontiguousarray(still[:, ::-1, ::-1]))
    assert not fit.converged or fit.correlation < 0.8


def test_the_same_volumes_give_the_same_motion_to_the_last_bit(phantom: Phantom) -> None:
    """Or a session that is resumed, or processed again, would give other values."""
    rng = np.random.default_rng(9)
    reference = phantom.render(np.eye(4), rng)
    factor = 1 + 0.05 * back(brain_mask(reference))
    centre = Registrar(reference, phantom.affine).centre
    volumes = [phantom.render(small_motion(rng, centre), rng) for _ in range(3)]
    one, other = Registrar(reference, phantom.affine), Registrar(reference, phantom.affine)
    for volume in volumes:
        excited = (factor * volume).astype(np.float32)
        np.testing.assert_array_equal(one.estimate(excited).matrix, other.estimate(excited).matrix)


@pytest.mark.parametrize("axis", range(3), ids=AXES)
def test_a_real_volume_does_not_move_with_the_coils_field(shared: Path, axis: int) -> None:
    reference, volume = real_volumes(shared)
    registrar = Registrar(scaled(reference, None), reference.affine)
    data = scaled(volume, None)
    still = registrar.estimate(data).matrix
    field = 0.94 * ramp(brain_mask(data), axis)
    fit = registrar.estimate((field * data).astype(np.float32))
    assert displacement_error(registrar, fit.matrix, still) < 0.03


def test_a_real_volume_does_not_move_with_a_response(shared: Path) -> None:
    reference, volume = real_volumes(shared)
    registrar = Registrar(scaled(reference, None), reference.affine)
    data = scaled(volume, None)
    still = registrar.estimate(data).matrix
    brain = brain_mask(data)
    assert reference.affine[1, 1] > 0  # the second axis runs to the front here, too
    posterior = back(brain)
    fit = registrar.estimate(((1 + 0.05 * posterior) * data).astype(np.float32))
    assert displacement_error(registrar, fit.matrix, still) < 0.03


def real_volumes(shared: Path) -> list[Volume]:
    """Return the first two volumes of a real series."""
    runs = read_runs(shared / "data" / "siemens-ve11-skyra-rtcloud", session="s", first_run=1, t_r_s=None)
    longest = max(([item for item in run.items if isinstance(item, Volume)] for run in runs), key=len)
    return longest[:2]


# steps ---------------------------------------------------------------------------------------------------


def linear_head(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return points, template, motion columns, field and block of a head that moves as its columns say."""
    points = rng.uniform(-60, 60, (9000, 3)).astype(np.float32)
    block = robust.blocks(points)
    order = np.argsort(block, kind="stable")
    points, block = points[order], block[order]
    template = rng.uniform(800, 1200, len(points)).astype(np.float32)
    jacobian = (50 * rng.standard_normal((len(points), 6))).astype(np.float32)
    field = robust.field_basis(points, template.astype(np.float64) ** 2)
    return points, template, jacobian, field, block


def test_steps_end_at_the_least_squares_of_what_is_ordinary() -> None:
    """Motion, field and noise are found as by least squares with a gain for each block that stands out."""
    rng = np.random.default_rng(0)
    points, template, jacobian, field, block = linear_head(rng)
    step = RobustStep(template, jacobian, field, np.ones(len(template), np.float32), block)
    motion = np.array([0.1, -0.2, 0.05, 0.03, -0.1, 0.02])
    shift = jacobian @ motion + template * (field @ rng.uniform(-0.01, 0.01, field.shape[1]))
    noise = 4 * rng.standard_normal(len(template))
    odd = np.isin(block, block[points[:, 1] < -35])
    values = template + shift + noise + 0.05 * template * odd
    own = (block[:, None] == np.unique(block[odd])) * template[:, None]
    design = np.column_stack([jacobian, field * template[:, None], own]).astype(np.float64)
    expected = np.linalg.lstsq(design, values - template, rcond=None)[0][:6]
    found = np.zeros(6)
    for _ in range(20):
        found += step((values - jacobian @ found).astype(np.float32))
    plain = np.linalg.lstsq(design[:, : 6 + field.shape[1]], values - template, rcond=None)[0][:6]
    error = 4 * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))[:6]
    # In standard errors; what is left is that Tukey's weights take a little from ordinary points, too.
    assert np.sqrt((((found - expected) / error) ** 2).mean()) < 1.0
    assert np.sqrt((((plain - expected) / error) ** 2).mean()) > 2.0


def test_points_outside_the_volume_do_not_count() -> None:
    rng = np.random.default_rng(1)
    _, template, jacobian, field, block = linear_head(rng)
    step = RobustStep(template, jacobian, field, np.ones(len(template), np.float32), block)
    motion = np.array([0.1, -0.2, 0.05, 0.03, -0.1, 0.02])
    values = (template + jacobian @ motion).astype(np.float32)
    values[::5] = np.nan
    np.testing.assert_allclose(step(values), motion, atol=2e-3)


@pytest.mark.parametrize(("flat", "columns"), [(False, 10), (True, 6)])
def test_fields_are_orthogonal_quadratic_polynomials(flat: bool, columns: int) -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(-60, 60, (500, 3)).astype(np.float32)
    if flat:
        points[:, 2] = 4.0
    weight = rng.uniform(0.5, 1.0, 500)
    basis = robust.field_basis(points, weight)
    assert basis.shape == (500, columns)
    np.testing.assert_allclose(basis.T @ (weight[:, None] * basis) / weight.sum(), np.eye(columns), atol=1e-8)
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    polynomial = 1 + 0.01 * x - 2e-4 * x * y + 1e-4 * y**2
    fitted = basis @ np.linalg.lstsq(basis, polynomial, rcond=None)[0]
    np.testing.assert_allclose(fitted, polynomial, atol=1e-9)
