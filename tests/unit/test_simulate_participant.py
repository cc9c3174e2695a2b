from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import gamma

from rtdecode.simulate import world
from rtdecode.simulate.head import make_head
from rtdecode.simulate.participant import HRF_STEP_S, Participant, ResponseParameters, hrf_library, make_participant
from rtdecode.simulate.population import Population, Share
from rtdecode.simulate.protocol import Protocol
from tests.unit.simulate_small import PLAN, PROTOCOL, participant


def scenes(n: int, seed: int = 9) -> list[world.Scene]:
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng) for _ in range(n)]


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


def test_tuning_has_the_size_asked_for() -> None:
    full = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=200))
    deviation = full.responses(scenes(400)).std(axis=0)
    assert np.median(np.log(deviation / full.parameters.tuning)) == pytest.approx(0, abs=0.5)
    assert 0.3 < np.log(deviation).std() < 0.6


def test_trial_noise_has_its_size_and_a_part_in_the_tuned_dimensions() -> None:
    one = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=200, lapses=0.0))
    evoked = one.responses(scenes(400))
    noise = one.trials(np.zeros((4000, 200)), run=1)
    at_rest = one.trials(np.zeros((4000, 200)), run=1, kinds=["blank"] * 4000)
    expected = evoked.std(axis=0) * one.parameters.trial_noise / one.parameters.tuning
    np.testing.assert_allclose(noise.std(axis=0), expected, rtol=0.15)
    leading = np.linalg.svd(evoked - evoked.mean(axis=0), full_matrices=False)[2][:8]

    def inside(x: np.ndarray) -> float:
        return float(((x @ leading.T) ** 2).sum() / (x**2).sum())

    assert inside(noise) > 1.5 * inside(at_rest)
    assert noise.var(axis=0).sum() == pytest.approx(at_rest.var(axis=0).sum() / 0.85, rel=0.05)
    assert not np.array_equal(noise, one.trials(np.zeros((4000, 200)), run=2))


def test_a_lapsed_trial_says_nothing_about_its_picture() -> None:
    one = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60, lapses=1.0))
    a, b = (one.trials(one.responses(scenes(3, seed)), run=1) for seed in (1, 2))
    np.testing.assert_array_equal(a, b)


def test_a_picture_without_content_evokes_the_mean_response_and_noise() -> None:
    one = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60, lapses=0.0))
    shown = scenes(2)
    evoked = one.responses([shown[0], None, shown[1], None])
    np.testing.assert_array_equal(evoked[1], evoked[3])
    np.testing.assert_array_equal(evoked[[0, 2]], one.responses(shown))
    general = one.responses(scenes(400))
    assert np.abs((evoked[1] - general.mean(axis=0)) / general.std(axis=0)).max() < 0.3
    null = one.trials(np.tile(evoked[1], (4000, 1)), run=1, kinds=["null"] * 4000)
    assert np.abs((null.mean(axis=0) - evoked[1]) / null.std(axis=0)).max() < 0.08
    pictured = one.trials(np.tile(evoked[0], (4000, 1)), run=1)
    np.testing.assert_allclose(null - evoked[1], pictured - evoked[0], atol=1e-9)


def test_kinds_of_trials_are_what_they_say() -> None:
    one = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60, lapses=0.0))
    evoked = one.responses(scenes(4))
    plain = one.trials(evoked, run=1)
    half = one.trials(evoked, run=1, kinds=["half"] * 4)
    np.testing.assert_allclose(plain - half, (evoked - one.mean) / 2, atol=1e-9)
    lapsed = one.trials(evoked, run=1, kinds=["picture", "lapsed", "picture", "picture"])
    np.testing.assert_allclose(lapsed - plain, [[0], [1], [0], [0]] * (0.3 * one.mean - evoked), atol=1e-9)
    blank = one.trials(evoked, run=1, kinds=["blank"] * 4)
    np.testing.assert_array_equal(blank, one.trials(2 * evoked, run=1, kinds=["blank"] * 4))
    many = one.trials(np.tile(evoked[0], (4000, 1)), run=1, kinds=["blank"] * 4000)
    assert np.abs(many.mean(axis=0)).max() < 0.1 * many.std()


def test_without_tuning_there_is_no_signal() -> None:
    numb = make_participant(3, PROTOCOL, ResponseParameters(n_responsive=60, tuning=0.0))
    evoked = numb.responses(scenes(5))
    assert np.isfinite(evoked).all()
    np.testing.assert_allclose(evoked - evoked[0], 0, atol=1e-12)


def test_participants_are_members_of_a_population() -> None:
    parameters = ResponseParameters(n_responsive=300)
    same = Population(0, Share(individual=0.0, voxel=0.0))
    one, other, stranger = (
        make_participant(3, PROTOCOL, parameters, same),
        make_participant(4, PROTOCOL, parameters, same),
        make_participant(4, PROTOCOL, parameters, Population(1, same.share)),
    )
    pictures = scenes(150)

    def likeness(a: Participant, b: Participant) -> float:
        same_place = (a.voxels[:, None] == b.voxels).all(axis=2)
        r = np.corrcoef(a.responses(pictures).T, b.responses(pictures).T)[:300, 300:]
        return float(r[same_place].mean())

    assert likeness(one, other) > likeness(one, stranger) + 0.2


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
