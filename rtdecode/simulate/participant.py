"""The simulated participant: where and how a brain answers to pictures.

After the reference parameters of the project (``estimate.md``, "Simulated participant that does not
flatter"): single-trial responses are a tuned part, of which 30 % of the picture's features are invisible,
plus low-rank trial noise that lies half inside the tuned dimensions, plus lapses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.special import gammainc

from rtdecode.simulate import world
from rtdecode.simulate.features import FeatureSpace, make_feature_space
from rtdecode.simulate.head import BRAIN_AXES_MM, FWHM_TO_SD, Head, make_head, smooth_noise
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.seeds import generator

HRF_STEP_S = 0.25
HRF_LENGTH_S = 32.0
_LAPSED_RESPONSE = 0.3
_HRF_SHIFTS_S = np.linspace(-1.2, 1.2, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseParameters:
    """How strongly and how reliably the brain answers.

    Amplitudes are percent signal change at the plateau of a long stimulus.

    Attributes
    ----------
    n_responsive : int
        Voxels that respond to pictures.
    tuning : float
        Median over voxels of the standard deviation over pictures; 0 gives a brain without signal.
    mean_response : float
        Response common to all pictures, mean over voxels.
    trial_noise : float
        Median over voxels of the standard deviation over trials of what no picture explains.
    spread : float
        Standard deviation of the logarithm of both over voxels.
    trial_noise_rank : int
        Dimensions of each of its two halves, in the leading tuned dimensions and elsewhere.
    invisible : float
        Fraction of the picture's features that the brain does not encode.
    lapses : float
        Fraction of trials on which the participant does not look.
    smoothness_mm : float
        Full width at half maximum of the maps of tuning.
    hrf_offset_s : float
        Standard deviation over participants of the delay of the response around the canonical one.
    """

    n_responsive: int = 2000
    tuning: float = 3.0
    mean_response: float = 3.0
    trial_noise: float = 4.0
    spread: float = 0.4
    trial_noise_rank: int = 8
    invisible: float = 0.3
    lapses: float = 0.05
    smoothness_mm: float = 5.0
    hrf_offset_s: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Participant:
    """A brain in a scanner.

    Attributes
    ----------
    seed : int
    protocol : Protocol
        Its grid carries the responsive voxels.
    parameters : ResponseParameters
    head : Head
    space : FeatureSpace
    voxels : array of shape (n_responsive, 3), int
        Grid indices of the responsive voxels at rest.
    mean : array of shape (n_responsive,)
        Response to the average picture, percent.
    weights : array of shape (n_features, n_responsive)
        Features of a picture to percent signal change around the mean.
    noise_weights : array of shape (2 * trial_noise_rank, n_responsive)
        Standard normal draws of a trial to percent signal change.
    hrf_index : array of shape (n_responsive,), int
        Row of `hrf_library` for each voxel.
    """

    seed: int
    protocol: Protocol
    parameters: ResponseParameters
    head: Head
    space: FeatureSpace
    voxels: NDArray[np.intp]
    mean: NDArray[np.float64]
    weights: NDArray[np.float64]
    noise_weights: NDArray[np.float64]
    hrf_index: NDArray[np.intp]

    def responses(self, scenes: list[world.Scene]) -> NDArray[np.float64]:
        """Return what pictures evoke without any noise: (n_scenes, n_responsive), percent signal change."""
        evoked: NDArray[np.float64] = self.mean + self.space(scenes) @ self.weights
        return evoked

    def trials(self, evoked: NDArray[np.float64], run: int) -> NDArray[np.float64]:
        """Turn noiseless responses of the trials of a run into what happens: trial noise and lapses.

        Parameters
        ----------
        evoked : array of shape (n_trials, n_responsive)
        run : int

        Returns
        -------
        array of shape (n_trials, n_responsive)
        """
        rng = generator(self.seed, "trials", run)
        noise = rng.standard_normal((evoked.shape[0], self.noise_weights.shape[0])) @ self.noise_weights
        lapsed = rng.random((evoked.shape[0], 1)) < self.parameters.lapses
        seen = np.where(lapsed, _LAPSED_RESPONSE * self.mean, evoked)
        happened: NDArray[np.float64] = seen + noise
        return happened

    def region(self) -> NDArray[np.bool_]:
        """Return posterior cortex on the grid of the protocol, as an atlas would draw it.

        It misses some responsive voxels and holds many that do not respond.
        """
        grid = _grid_ras(self.protocol)
        cortex = _on_grid(self.head.grey, self.head, grid) > 0.3
        return np.asarray(cortex & (grid[1] < -38) & (grid[2] < 42))

    def write_region(self, path: Path) -> None:
        """Write `region` as a NIfTI mask in the space of the acquired volumes."""
        nib.save(nib.Nifti1Image(self.region().astype(np.uint8), self.protocol.affine), path)

    def on_grid(
        self, values: NDArray[np.float64], affine: NDArray[np.float64], mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Sample values of the responsive voxels at the voxels of a mask in any space.

        Parameters
        ----------
        values : array of shape (n, n_responsive)
        affine : array of shape (4, 4)
            Of the mask, to RAS mm.
        mask : array of shape (i, j, k), bool

        Returns
        -------
        array of shape (n, v)
            Linear interpolation; zero outside the responsive voxels.
        """
        own = np.linalg.inv(self.protocol.affine) @ affine
        points = own[:3, :3] @ np.argwhere(mask).T + own[:3, 3:]
        points = np.where(np.abs(points - np.round(points)) < 1e-4, np.round(points), points)
        low = np.floor(points).astype(np.intp)
        fraction = points - low
        columns = np.full(self.protocol.shape, values.shape[1], dtype=np.intp)
        columns[tuple(self.voxels.T)] = np.arange(values.shape[1])
        padded = np.hstack([values, np.zeros((values.shape[0], 1))]).astype(np.float32)
        out = np.zeros((values.shape[0], points.shape[1]), dtype=np.float32)
        limits = np.array(self.protocol.shape)[:, None]
        for corner in np.ndindex(2, 2, 2):
            at = low + np.array(corner)[:, None]
            inside = ((at >= 0) & (at < limits)).all(axis=0)
            weight = np.prod(np.where(np.array(corner)[:, None], fraction, 1 - fraction), axis=0)
            source = columns[tuple(np.clip(at, 0, limits - 1))]
            out += np.where(inside, weight, 0).astype(np.float32) * padded[:, source]
        return out


def make_participant(
    seed: int, protocol: Protocol | None = None, parameters: ResponseParameters | None = None
) -> Participant:
    """Draw a participant.

    Parameters
    ----------
    seed : int
        Head, tuning and noise all follow from it.
    protocol : Protocol, optional
    parameters : ResponseParameters, optional

    Raises
    ------
    ValueError
        If the visual part of this head has fewer voxels than are to respond.
    """
    protocol = protocol or Protocol()
    parameters = parameters or ResponseParameters()
    head, space = make_head(seed), make_feature_space()
    rng = generator(seed, "participant")
    grid = _grid_ras(protocol)
    voxels = _responsive(rng, protocol, head, grid, parameters.n_responsive)
    position = grid[:, *voxels.T].T
    smoothing = np.exp(-cdist(position, position, "sqeuclidean") / (2 * (parameters.smoothness_mm * FWHM_TO_SD) ** 2))

    def maps(n: int, smoothing: NDArray[np.float64] = smoothing) -> NDArray[np.float64]:
        fields = rng.standard_normal((n, len(voxels))) @ smoothing
        return np.asarray(fields / np.sqrt((smoothing**2).sum(axis=0)))

    n_features = space.variance.size
    gain = np.exp(parameters.spread * maps(1)[0])
    spectrum = np.sqrt(space.variance)[:, None]
    n_visible = round((1 - parameters.invisible) * n_features)
    visible = np.linalg.qr(rng.standard_normal((n_features, n_visible)))[0]
    tuning = visible @ (visible.T @ (spectrum * maps(n_features)))
    tuning /= np.linalg.norm(tuning, axis=0)
    inside = tuning[: parameters.trial_noise_rank]
    elsewhere = maps(parameters.trial_noise_rank)
    noise = np.vstack([half / np.linalg.norm(half, axis=0) for half in (inside, elsewhere)])
    coarse = np.exp(-cdist(position, position, "sqeuclidean") / (2 * (20 * FWHM_TO_SD) ** 2))
    delay = parameters.hrf_offset_s * rng.standard_normal() + 0.4 * maps(1, coarse)[0]
    return Participant(
        seed=seed,
        protocol=protocol,
        parameters=parameters,
        head=head,
        space=space,
        voxels=voxels,
        mean=parameters.mean_response * (1 + 0.5 * maps(1)[0]),
        weights=parameters.tuning * gain * (tuning / spectrum),
        noise_weights=parameters.trial_noise * np.sqrt(0.5) * gain * noise,
        hrf_index=np.abs(delay[:, None] - _HRF_SHIFTS_S).argmin(axis=1),
    )


def hrf_library() -> NDArray[np.float64]:
    """Return haemodynamic responses of different delays, integral one.

    A difference of two gamma densities as in SPM, its delays stretched.

    Returns
    -------
    array of shape (n, HRF_LENGTH_S / HRF_STEP_S)
        Integral of the response over each step.
    """
    edges = np.arange(0, HRF_LENGTH_S + HRF_STEP_S / 2, HRF_STEP_S)
    stretch = 1 + _HRF_SHIFTS_S[:, None] / 5.0
    integral = gammainc(6.0, edges / stretch) - gammainc(16.0, edges / stretch) / 6
    steps = np.diff(integral, axis=1)
    return np.asarray(steps / steps.sum(axis=1, keepdims=True))


def _grid_ras(protocol: Protocol) -> NDArray[np.float64]:
    """RAS positions of the voxels of a protocol, shape (3, i, j, k)."""
    index = np.indices(protocol.shape).reshape(3, -1)
    ras = protocol.affine[:3, :3] @ index + protocol.affine[:3, 3:]
    return np.asarray(ras.reshape(3, *protocol.shape))


def _on_grid(field: NDArray[np.float32], head: Head, grid: NDArray[np.float64]) -> NDArray[np.float32]:
    at = (grid - head.affine[:3, 3].reshape(3, 1, 1, 1)) / np.diag(head.affine)[:3].reshape(3, 1, 1, 1)
    return np.asarray(ndimage.map_coordinates(field, at, order=1))


def _responsive(
    rng: np.random.Generator, protocol: Protocol, head: Head, grid: NDArray[np.float64], n: int
) -> NDArray[np.intp]:
    """Choose voxels of grey matter in the back of the head, in patches."""
    grey = _on_grid(head.grey, head, grid)
    preference = smooth_noise(rng, protocol.shape, 15.0, protocol.voxel_mm) - 2.5 * grid[1] / BRAIN_AXES_MM[1]
    preference[(grey < 0.4) | (grid[1] > -15) | (grid[2] > 45)] = -np.inf
    best = np.argsort(preference, axis=None)[::-1][:n]
    if len(best) < n or not np.isfinite(preference.flat[best[-1]]):
        available = int(np.isfinite(preference).sum())
        raise ValueError(f"expected at least {n} voxels of visual cortex, got {available}: larger voxels need fewer")
    return np.stack(np.unravel_index(np.sort(best), protocol.shape), axis=1)
