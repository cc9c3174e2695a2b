from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import gamma

from rtdecode.simulate import world
from rtdecode.simulate.features import N_FEATURES, make_feature_space
from rtdecode.simulate.head import make_head
from rtdecode.simulate.participant import HRF_STEP_S, ResponseParameters, hrf_library, make_participant
from rtdecode.simulate.protocol import Protocol
from tests.unit.simulate_small import PLAN, PROTOCOL, participant


def scenes(n: int, seed: int = 9) -> list[world.Scene]:
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng) for _ in range(n)]


def test_features_have_a_falling_spectrum_on_pictures_they_were_not_fitted_to() -> None:
    space = make_feature_space()
    features = space(scenes(300))
    assert features.shape == (300, N_FEATURES)
    assert space.variance.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(space.variance * np.arange(1, N_FEATURES + 1), space.variance[0])
    observed = features.var(axis=0)
    assert np.corrcoef(np.log(observed), np.log(space.variance))[0, 1] > 0.95
    assert 0.7 < observed.sum() < 1.3


def test_features_hold_the_meaning_of_a_picture() -> None:
    known, fresh, space = scenes(400, 1), scenes(100, 2), make_feature_space()
    x, y = space(known), np.array([scene.category for scene in known])
    centres = {name: x[y == name].mean(axis=0) for name in world.CATEGORIES}
    spread = np.sqrt(space.variance)
    guess = [min(centres, key=lambda name: np.linalg.norm((row - centres[name]) / spread)) for row in space(fresh)]
    assert np.mean([g == scene.category for g, scene in zip(guess, fresh, strict=True)]) > 0.6


def test_a_head_has_tissues_where_they_belong() -> None:
    head = make_head(0)
    inverse = np.linalg.inv(head.affine)

    def at(*ras: float) -> tuple[int, ...]:
        return tuple(np.round(inverse @ [*ras, 1]).astype(int)[:3])

    assert head.signal[at(86, 100, 76)] == pytest.approx(0, abs=1)
    assert head.signal[at(-13, -4, 8)] > head.signal[at(-32, -4, 20)] > 0
    assert head.grey[at(-32, -4, 20)] < 0.2
    assert head.grey.max() > 0.9
    np.testing.assert_array_equal(head.signal, make_head(0).signal)
    assert not np.array_equal(head.signal, make_head(1).signal)


def test_responses_to_hrf_shapes_have_unit_integral_and_late_peaks_in_order() -> None:
    library = hrf_library()
    np.testing.assert_allclose(library.sum(axis=1), 1.0)
    peaks = library.argmax(axis=1) * HRF_STEP_S
    assert (np.diff(peaks) >= 0).all()
    assert 3.0 < peaks[0] < 5.0 < peaks[-1] < 7.0
    middle = library[len(library) // 2]
    time = (np.arange(middle.size) + 0.5) * HRF_STEP_S
    canonical = gamma.pdf(time, 6) - gamma.pdf(time, 16) / 6
    np.testing.assert_allclose(middle, canonical / canonical.sum(), atol=1e-4)


def test_tuning_has_the_size_asked_for_and_leaves_features_out() -> None:
    one = participant()
    deviation = np.sqrt((one.weights**2 * one.space.variance[:, None]).sum(axis=0))
    assert np.median(np.log(deviation / one.parameters.tuning)) == pytest.approx(0, abs=0.4)
    full = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=200))
    scaled = full.weights * np.sqrt(full.space.variance)[:, None]
    visible = np.linalg.matrix_rank(scaled, tol=1e-8 * np.linalg.norm(scaled))
    assert visible == round(0.7 * N_FEATURES)


def test_trial_noise_has_its_size_and_lies_half_in_the_tuned_dimensions() -> None:
    one = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=200, lapses=0.0))
    zero = np.zeros((4000, 200))
    noise = one.trials(zero, run=1)
    tuned = np.sqrt((one.weights**2 * one.space.variance[:, None]).sum(axis=0))
    expected = tuned * one.parameters.trial_noise / one.parameters.tuning
    np.testing.assert_allclose(noise.std(axis=0), expected, rtol=0.1)
    rank = one.parameters.trial_noise_rank
    assert np.linalg.matrix_rank(noise) == 2 * rank
    leading = np.linalg.qr(one.weights[:rank].T)[0]
    inside = ((noise @ leading) ** 2).sum() / (noise**2).sum()
    assert 0.4 < inside < 0.75
    assert not np.array_equal(noise, one.trials(zero, run=2))


def test_a_lapsed_trial_says_nothing_about_its_picture() -> None:
    parameters = ResponseParameters(n_responsive=60, lapses=1.0, trial_noise=0.0)
    blind = make_participant(3, PROTOCOL, parameters)
    happened = blind.trials(blind.responses(scenes(3)), run=1)
    np.testing.assert_allclose(happened - happened[0], 0, atol=1e-12)


def test_without_tuning_there_is_no_signal() -> None:
    numb = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60, tuning=0.0))
    evoked = numb.responses(scenes(5))
    assert np.isfinite(evoked).all()
    np.testing.assert_allclose(evoked - evoked[0], 0, atol=1e-12)


def test_responses_on_the_own_grid_are_exact_and_elsewhere_interpolated() -> None:
    one = participant()
    evoked = one.responses([trial.scene for trial in PLAN.trials[:3]])
    everywhere = np.ones(PROTOCOL.shape, bool)
    field = one.on_grid(evoked, PROTOCOL.affine, everywhere).reshape(3, *PROTOCOL.shape)
    np.testing.assert_allclose(field[:, *one.voxels.T], evoked, rtol=1e-5)
    assert np.count_nonzero(field[0]) == len(one.voxels)
    other = PROTOCOL.affine @ np.array([[0.5, 0, 0, 3.2], [0, 0.5, 0.1, 2.0], [0, 0, 0.5, 1.7], [0, 0, 0, 1]])
    mask = np.random.default_rng(0).random((40, 44, 16)) < 0.3
    moved = np.linalg.inv(PROTOCOL.affine) @ other
    points = moved[:3, :3] @ np.argwhere(mask).T + moved[:3, 3:]
    expected = ndimage.map_coordinates(field[1].astype(float), points, order=1, mode="constant", cval=0)
    np.testing.assert_allclose(one.on_grid(evoked, other, mask)[1], expected, atol=1e-4)


def test_the_region_is_neither_the_responsive_voxels_nor_without_them() -> None:
    one = make_participant(0)
    region = one.region()
    inside = region[tuple(one.voxels.T)].sum()
    assert 0.4 * len(one.voxels) < inside < 0.95 * len(one.voxels)
    assert region.sum() > 1.3 * inside


def test_the_region_is_written_in_the_space_of_the_volumes(tmp_path: Path) -> None:
    participant().write_region(tmp_path / "region.nii.gz")
    image = nib.load(tmp_path / "region.nii.gz")
    np.testing.assert_allclose(image.affine, PROTOCOL.affine)
    np.testing.assert_array_equal(np.asarray(image.dataobj) > 0, participant().region())


def test_a_seed_is_a_participant() -> None:
    again = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60))
    np.testing.assert_array_equal(again.weights, participant().weights)
    np.testing.assert_array_equal(again.voxels, participant().voxels)
    other = make_participant(4, PROTOCOL, ResponseParameters(n_responsive=60))
    assert not np.array_equal(other.weights, participant().weights)


def test_more_voxels_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="visual cortex"):
        make_participant(0, Protocol(shape=(16, 16, 8), voxel_mm=(13, 13, 16)))
