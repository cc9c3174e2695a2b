"""Places aligned by function, against planted displacements and a likelihood written out voxel by voxel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage

from calibration.encoding.alignment import SHIFT_MM, WARP_MM, Displacement, MeanMaps, mean_maps, read_cells
from calibration.encoding.group_prior import CELL_MM, GroupPrior, PlacedPrior, statistics_of

K = 6
V = 600
LOW, HIGH = -40.0, 40.0


@dataclass(frozen=True, kw_only=True)
class Brain:
    """A person whose voxels answer as a known function of place does elsewhere than they seem to lie."""

    seems: np.ndarray
    lies: np.ndarray
    components: np.ndarray
    responses: np.ndarray


class World:
    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._waves = self._rng.standard_normal((3, 60)) / 10
        self._phases = self._rng.uniform(0, 2 * np.pi, 60)
        self._template = 0.07 * self._rng.standard_normal((60, K + 1))

    def weights(self, places: np.ndarray) -> np.ndarray:
        return (np.cos(places @ self._waves + self._phases) @ self._template).T

    def brain(self, n: int, *, shift: tuple[float, float, float], bend_mm: float, signal: float = 1.0) -> Brain:
        seems = self._rng.uniform(-30, 30, (V, 3))
        lies = seems + np.array(shift) + bend_mm * np.sin(seems[:, [1, 2, 0]] / 20)
        components = self._rng.standard_normal((n, K))
        evoked = np.column_stack([np.ones(n), components]) @ self.weights(lies)
        responses = (signal * evoked + self._rng.standard_normal((n, V))).astype(np.float32)
        return Brain(seems=seems, lies=lies, components=components, responses=responses)

    def group(self) -> GroupPrior:
        axis = np.arange(LOW, HIGH + 1, CELL_MM)
        cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
        mean = self.weights(cells.reshape(-1, 3)).reshape(K + 1, *cells.shape[:3]).astype(np.float32)
        return GroupPrior(
            origin_mm=np.full(3, LOW),
            cell_mm=CELL_MM,
            mean=mean,
            constant_variance=0.1,
            spectrum=np.full(K, 1 / K),
            covariance=0.02 * np.eye(K + 1),
            people=20,
        )


def error_mm(places: np.ndarray, brain: Brain) -> float:
    return float(np.sqrt(np.square(places - brain.lies).mean()))


@pytest.mark.parametrize(("n", "left"), [(10, 0.7), (60, 0.35)])
def test_places_move_to_where_the_voxels_answer_as_others_do(n: int, left: float) -> None:
    world = World(0)
    brain = world.brain(n, shift=(5.0, -4.0, 3.0), bend_mm=3.0)
    moved = PlacedPrior(group=world.group(), places_mm=brain.seems).aligned(brain.components, brain.responses)
    assert error_mm(moved.places_mm, brain) < left * error_mm(brain.seems, brain)


def test_a_brain_that_lies_well_hardly_moves() -> None:
    world = World(1)
    brain = world.brain(60, shift=(0.0, 0.0, 0.0), bend_mm=0.0)
    moved = PlacedPrior(group=world.group(), places_mm=brain.seems).aligned(brain.components, brain.responses)
    assert error_mm(moved.places_mm, brain) < 1.0


def test_noise_moves_a_brain_no_further_than_brains_usually_lie_apart() -> None:
    world = World(2)
    brain = world.brain(60, shift=(0.0, 0.0, 0.0), bend_mm=0.0, signal=0.0)
    moved = PlacedPrior(group=world.group(), places_mm=brain.seems).aligned(brain.components, brain.responses)
    assert error_mm(moved.places_mm, brain) < np.hypot(SHIFT_MM, WARP_MM)


def test_without_trials_places_stay() -> None:
    world = World(3)
    brain = world.brain(4, shift=(5.0, 0.0, 0.0), bend_mm=0.0)
    prior = PlacedPrior(group=world.group(), places_mm=brain.seems)
    np.testing.assert_array_equal(prior.aligned(brain.components[:0], brain.responses[:0]).places_mm, brain.seems)


def log_posterior(moved: Displacement, maps: MeanMaps, brain: Brain, group: GroupPrior, noise: float) -> float:
    """Of a displacement: of each voxel's least-squares weights around the mean at its place, and of itself."""
    told = statistics_of(brain.components, brain.responses, brain.seems)
    found = np.linalg.solve(told.gram, told.products.astype(float))
    covariance = noise * np.linalg.inv(told.gram) + group.covariance
    total = 0.0
    for weights, place in zip(found.T, moved.places(), strict=True):
        off = weights - maps.axes @ maps.at(place[None])[0, :, 0]
        total -= 0.5 * 0.3 * off @ np.linalg.solve(covariance, off)
    return total - 0.5 * float((moved.amounts * (moved._precision @ moved.amounts)).sum())


def test_steps_end_where_the_posterior_is_highest() -> None:
    world = World(4)
    brain = world.brain(40, shift=(3.0, -2.0, 1.0), bend_mm=2.0)
    group = world.group()
    told = statistics_of(brain.components, brain.responses, brain.seems)
    maps = mean_maps(group.mean, group.origin_mm, CELL_MM)
    moved = Displacement(brain.seems)
    before = log_posterior(moved, maps, brain, group, 1.3)
    moved.fit(maps, told.gram, told.products, group.covariance, 1.3, steps=25)
    best = log_posterior(moved, maps, brain, group, 1.3)
    assert best > before
    found = moved.amounts.copy()
    rng = np.random.default_rng(0)
    for size in (0.5, 2.0):
        for _ in range(8):
            moved.amounts = found + size * rng.standard_normal(3) * (np.arange(len(found)) == 0)[:, None]
            assert log_posterior(moved, maps, brain, group, 1.3) < best + 0.01 * (best - before)


def test_cells_are_read_as_scipy_reads_each_map() -> None:
    rng = np.random.default_rng(6)
    maps = rng.standard_normal((4, 6, 5, 3)).astype(np.float32)
    where = np.vstack([rng.uniform(-1, 7, (200, 3)), [[0, 0, 0], [3, 5, 4], [3, 0, 4], [3.01, 1, 1], [-0.01, 1, 1]]])
    each = np.moveaxis(maps, -1, 0)
    expected = [ndimage.map_coordinates(one, where.T, order=1, output=np.float64) for one in each]
    inside = ((where >= 0) & (where <= np.array(maps.shape[:3]) - 1)).all(axis=1)
    found = read_cells(maps, where)
    np.testing.assert_allclose(found[:, inside], np.array(expected)[:, inside], atol=1e-6)
    assert not found[:, ~inside].any()
