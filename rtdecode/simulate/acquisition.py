"""Renders a run volume by volume: a moving head, responses, drift, pulse and breathing, thermal noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtdecode.simulate import render
from rtdecode.simulate.head import smooth_noise
from rtdecode.simulate.mosaic_writer import LARGEST_VALUE
from rtdecode.simulate.participant import HRF_STEP_S, Participant, hrf_library
from rtdecode.simulate.regulation import Regulator
from rtdecode.simulate.seeds import generator
from rtdecode.simulate.visit import Trial

_N_DRIFTS = 4
_AIR = 5.0
_RADIUS_MM = 50.0
_HEIGHT_S = 5.0
_COMMON_S = 1.5
_EVEN = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseParameters:
    """What a scanner and a body add. Percent is of the local signal.

    Attributes
    ----------
    thermal_tsnr : float
        Mean brain signal over the standard deviation of thermal noise.
    autoregressive : float
        Standard deviation of first-order autoregressive noise, percent.
    rho_mean, rho_sd : float
        Distribution over voxels of its coefficient, clipped to 0 to .7.
    physiological : float
        Standard deviation of pulse and breathing together, percent.
    common : float
        Standard deviation of what the whole brain does together within seconds, percent.
    drift : float
        Standard deviation of slow drift, percent.
    motion_walk_mm : float
        Step of the random walk of each translation per volume; rotations move the cortex as much.
    spikes : int
        Sudden movements a run, of one volume each.
    spike_mm : tuple of float
        Smallest and largest.
    between_runs_mm : float
        Standard deviation of the shift from one run to the next.
    """

    thermal_tsnr: float = 70.0
    autoregressive: float = 0.5
    rho_mean: float = 0.35
    rho_sd: float = 0.12
    physiological: float = 0.6
    common: float = 0.3
    drift: float = 0.7
    motion_walk_mm: float = 0.03
    spikes: int = 2
    spike_mm: tuple[float, float] = (0.5, 2.0)
    between_runs_mm: float = 0.5


class Acquisition:
    """Acquires runs from a participant.

    Parameters
    ----------
    participant : Participant
    noise : NoiseParameters
    """

    def __init__(self, participant: Participant, noise: NoiseParameters | None = None) -> None:
        self._participant = participant
        self._noise = noise or NoiseParameters()
        protocol, head = participant.protocol, participant.head
        self._coefficients = ndimage.spline_filter(head.signal, order=3, output=np.float32, mode="mirror")
        self._to_head = np.linalg.inv(head.affine)
        at_rest = render.sample(
            self._coefficients, self._to_head @ protocol.affine, np.argwhere(np.ones(protocol.shape, bool))
        ).reshape(protocol.shape)
        near = ndimage.binary_dilation(at_rest > _AIR, iterations=2)
        self._active = np.argwhere(near).astype(np.int32)
        self._sigma = float(at_rest[at_rest > at_rest.max() / 3].mean() / self._noise.thermal_tsnr)
        self._nodes = np.full(protocol.shape, -1, dtype=np.int32)
        self._nodes[tuple(participant.voxels.T)] = np.arange(len(participant.voxels))
        self._responds = ndimage.binary_dilation(self._nodes >= 0, iterations=2)[near]

    def run(
        self,
        run: int,
        trials: tuple[Trial, ...],
        evoked: NDArray[np.float64],
        n_volumes: int,
        regulator: Regulator | None = None,
    ) -> Iterator[NDArray[np.uint16]]:
        """Yield the volumes of a run as the scanner stores them.

        Parameters
        ----------
        run : int
        trials : tuple of Trial
        evoked : array of shape (n_trials, n_responsive)
            Noiseless response to each trial, percent signal change.
        n_volumes : int
        regulator : Regulator, optional
            Asked, when the volume before has been taken, what the participant does in a trial of the kind "regulate".

        Yields
        ------
        array of shape (columns, rows, slices), uint16
        """
        participant, protocol = self._participant, self._participant.protocol
        seed = participant.seed
        happened = participant.trials(evoked, run, [trial.kind for trial in trials])
        response = time_courses(participant, trials, happened, n_volumes * protocol.t_r_s)
        spikes = [round((t.onset_s + _HEIGHT_S) / protocol.t_r_s) for t in trials if t.spike]
        motion = self.motion(run, n_volumes, [index for index in spikes if index < n_volumes])
        maps = self._maps(generator(seed, "slow noise", run))
        waves = self._waves(generator(seed, "body", run), n_volumes)
        rng = generator(seed, "thermal", run)
        rho = np.clip(
            generator(seed, "rho").normal(self._noise.rho_mean, self._noise.rho_sd, len(self._active)), 0, 0.7
        )
        rho = rho.astype(np.float32)
        innovation = self._noise.autoregressive * np.sqrt(1 - rho**2)
        state = self._noise.autoregressive * rng.standard_normal(len(self._active), dtype=np.float32)
        tries = [trial for trial in trials if trial.kind == "regulate"] if regulator is not None else []
        for volume in range(n_volumes):
            while regulator is not None and tries and tries[0].onset_s < (volume + 1) * protocol.t_r_s:
                tried = regulator.attempt() * regulator.target[None]
                response += time_courses(participant, (tries.pop(0),), tried, n_volumes * protocol.t_r_s)
            moments = volume * protocol.t_r_s + protocol.slice_times_s
            moved = motion[volume] @ protocol.affine
            clean = render.volume(
                self._coefficients,
                self._to_head @ moved,
                np.linalg.inv(protocol.affine) @ moved,
                self._active,
                self._responds,
                self._nodes,
                sampled_at(response, moments).astype(np.float32),
                maps,
                sampled_at(waves, moments).astype(np.float32),
                state,
            )
            noise = rng.standard_normal((2, *protocol.shape), dtype=np.float32)
            yield render.store(clean, noise, self._sigma, LARGEST_VALUE)
            state = rho * state + innovation * rng.standard_normal(len(self._active), dtype=np.float32)

    def motion(self, run: int, n_volumes: int, spikes: Sequence[int] = ()) -> NDArray[np.float64]:
        """Return how the head moves in a run.

        Parameters
        ----------
        run : int
        n_volumes : int
        spikes : sequence of int
            Volumes of sudden movements, besides those that come by themselves.

        Returns
        -------
        array of shape (n_volumes, 4, 4)
            RAS mm of the scanner to RAS mm of the head at rest, one matrix a volume.
        """
        noise = self._noise
        rng = generator(self._participant.seed, "motion", run)
        unit = np.array([1, 1, 1, 1 / _RADIUS_MM, 1 / _RADIUS_MM, 1 / _RADIUS_MM])
        steps = noise.motion_walk_mm * rng.standard_normal((n_volumes, 6))
        steps[0] = 0 if run == 1 else noise.between_runs_mm * rng.standard_normal(6)
        walk = np.cumsum(steps, axis=0)
        by_themselves = rng.choice(np.arange(1, n_volumes), size=min(noise.spikes, n_volumes - 1), replace=False)
        for at in [*by_themselves, *spikes]:
            direction = rng.standard_normal(6)
            walk[at] += rng.uniform(*noise.spike_mm) * direction / np.linalg.norm(direction)
        return np.stack([_rigid(row) for row in walk * unit])

    def _maps(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Spatial weights of the slow waves: pulse (2), breathing (2), drifts, common; percent; one row a voxel."""
        protocol = self._participant.protocol
        voxels = tuple(self._active.T)
        body = [self._noise.physiological / np.sqrt(2)] * 4
        falling = 1 / np.arange(1, _N_DRIFTS + 1)
        drifts = self._noise.drift * np.sqrt(2) * falling / np.linalg.norm(falling)
        fields = [
            scale * smooth_noise(rng, protocol.shape, fwhm_mm, protocol.voxel_mm)[voxels]
            for scale, fwhm_mm in zip((*body, *drifts), (20.0,) * 4 + (35.0,) * _N_DRIFTS, strict=True)
        ]
        uneven = smooth_noise(rng, protocol.shape, 35.0, protocol.voxel_mm)[voxels]
        fields.append(self._noise.common * (np.sqrt(_EVEN) + np.sqrt(1 - _EVEN) * uneven))
        return np.ascontiguousarray(np.stack(fields, axis=1), dtype=np.float32)

    def _waves(self, rng: np.random.Generator, n_volumes: int) -> NDArray[np.float64]:
        """Time courses of the slow waves, one column each, every `HRF_STEP_S`."""
        time = np.arange(0, n_volumes * self._participant.protocol.t_r_s + 2 * HRF_STEP_S, HRF_STEP_S)
        waves = []
        for low, high in ((1.0, 1.2), (0.2, 0.3)):
            wander = 0.04 * ndimage.gaussian_filter1d(rng.standard_normal(time.size), 20, mode="nearest") * np.sqrt(40)
            phase = 2 * np.pi * (rng.random() + np.cumsum(rng.uniform(low, high) * (1 + wander)) * HRF_STEP_S)
            waves += [np.sin(phase), np.cos(phase)]
        waves += [np.cos(np.pi * k * time / time[-1]) for k in range(1, _N_DRIFTS + 1)]
        common = ndimage.gaussian_filter1d(rng.standard_normal(time.size), _COMMON_S / HRF_STEP_S, mode="wrap")
        waves.append(common / common.std())
        return np.stack(waves, axis=1)


def time_courses(
    participant: Participant, trials: tuple[Trial, ...], happened: NDArray[np.float64], duration_s: float
) -> NDArray[np.float64]:
    """Return the response of each responsive voxel every `HRF_STEP_S`, percent; shape (n_steps, n_responsive)."""
    n_steps = int(np.ceil(duration_s / HRF_STEP_S)) + 2
    library = hrf_library()
    out = np.zeros((n_steps, len(participant.voxels)))
    for index, hrf in enumerate(library):
        voxels = np.flatnonzero(participant.hrf_index == index)
        cumulative = np.concatenate([[0.0], np.cumsum(hrf)])
        design = np.zeros((n_steps, len(trials)))
        for column, trial in enumerate(trials):
            since = np.arange(n_steps) - trial.onset_s / HRF_STEP_S
            until = since - trial.duration_s / HRF_STEP_S
            grid = np.arange(cumulative.size)
            design[:, column] = np.interp(since, grid, cumulative) - np.interp(until, grid, cumulative)
        out[:, voxels] = design @ happened[:, voxels]
    return out


def sampled_at(series: NDArray[np.float64], moments_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate rows of a series sampled every `HRF_STEP_S`."""
    position = moments_s / HRF_STEP_S
    low = position.astype(np.intp)
    fraction = (position - low)[:, None]
    return np.asarray(series[low] * (1 - fraction) + series[low + 1] * fraction)


def _rigid(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rigid motion from three translations (mm) and three rotations (rad), about the centre of the head."""
    x, y, z = parameters[3:]
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_x @ about_y @ about_z
    matrix[:3, 3] = parameters[:3]
    return matrix
