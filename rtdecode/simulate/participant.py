"""The simulated participant: a member of a population in a scanner.

What its voxels answer to and how they vary from trial to trial is the population's; here it gets a head, voxels of a
scanner's grid, percent signal change and the time course of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import gammainc

from rtdecode.simulate import world
from rtdecode.simulate.features import EARLY, FRONT, MIDDLE, picture_features
from rtdecode.simulate.fields import make_waves
from rtdecode.simulate.head import BRAIN_AXES_MM, Head, make_head
from rtdecode.simulate.population import LAPSED_RESPONSE, LAPSES, Population, leading_directions
from rtdecode.simulate.protocol import Protocol
from rtdecode.simulate.seeds import generator
from rtdecode.simulate.trial_noise import TrialNoise
from rtdecode.simulate.visit import HEARD, Kind

HRF_STEP_S = 0.25
HRF_LENGTH_S = 32.0
_BACKWARD = 2.5
_DELAY_MM = 12.0
_HRF_SHIFTS_S = np.linspace(-1.2, 1.2, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imagined:
    """What is left of a response when its picture is imagined, as a share of what seeing it evokes.

    Imagery activates early visual cortex weakly and spares what is high-level (Breedlove et al. 2020; Favila et al.
    2022); the numbers are a choice of this simulator.

    Attributes
    ----------
    mean, early, middle, front : float
        Of the response common to all pictures, and of the three stages of `rtdecode.simulate.features`.
    """

    mean: float = 0.4
    early: float = 0.1
    middle: float = 0.3
    front: float = 0.6


IMAGINED = Imagined()
CUE_RESPONSE = 0.3
"""Response to a letter, as a share of the mean one to pictures."""
HEARD_RESPONSE = 0.25
"""Response to what is heard in a film, in the voxels that answer to it, as a share of the mean one to pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseParameters:
    """How strongly and how reliably the brain answers.

    Amplitudes are percent signal change at the plateau of a long stimulus.

    Attributes
    ----------
    n_responsive : int
        Voxels that respond to pictures.
    tuning : float
        Median over voxels and people of the standard deviation over pictures; 0 gives a brain without signal.
    mean_response : float
        Response common to all pictures, mean over voxels.
    trial_noise : float
        Median over voxels and people of the standard deviation over trials of what no picture explains.
    lapses : float
        Fraction of trials on which the participant does not look.
    hrf_offset_s : float
        Standard deviation over participants of the delay of the response around the canonical one.
    """

    n_responsive: int = 2000
    tuning: float = 2.5
    mean_response: float = 3.0
    trial_noise: float = 4.0
    lapses: float = LAPSES
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
    voxels : array of shape (n_responsive, 3), int
        Grid indices of the responsive voxels at rest.
    mean : array of shape (n_responsive,)
        Response to the average picture, percent.
    weights : array of shape (N_FEATURES, n_responsive)
        Features of a picture to percent signal change around the mean.
    noise : TrialNoise
        Percent signal change.
    hrf_index : array of shape (n_responsive,), int
        Row of `hrf_library` for each voxel.
    """

    seed: int
    protocol: Protocol
    parameters: ResponseParameters
    head: Head
    voxels: NDArray[np.intp]
    mean: NDArray[np.float64]
    weights: NDArray[np.float64]
    noise: TrialNoise
    hrf_index: NDArray[np.intp]

    def responses(self, scenes: Sequence[world.Scene | None], kinds: Sequence[Kind] = ()) -> NDArray[np.float64]:
        """Return what pictures evoke without any noise: (n_scenes, n_responsive), percent signal change.

        None stands for a picture without content, to which the response is the mean one. A picture that is imagined
        evokes less of everything, and hardly any of what is early: see `IMAGINED`.

        Parameters
        ----------
        scenes : sequence of Scene or None
        kinds : sequence of Kind
            Of each; all are "picture" when omitted.
        """
        kind = np.array(kinds or ["picture"] * len(scenes))
        share = np.select([kind == "imagery", kind == "cue"], [IMAGINED.mean, CUE_RESPONSE], 1.0)
        evoked: NDArray[np.float64] = share[:, None] * self.mean
        shown = np.flatnonzero([scene is not None for scene in scenes])
        if len(shown):
            features = picture_features([scene for scene in scenes if scene is not None])
            imagined = kind[shown] == "imagery"
            for stage, gain in ((EARLY, IMAGINED.early), (MIDDLE, IMAGINED.middle), (FRONT, IMAGINED.front)):
                features[np.ix_(imagined, np.arange(stage.start, stage.stop))] *= gain
            evoked[shown] += features @ self.weights
        for one in HEARD:
            if (kind == one).any():
                evoked[kind == one] = self._heard(speech=one == "speech")
        return evoked

    def _heard(self, *, speech: bool) -> NDArray[np.float64]:
        """Response to what is heard: of the foremost third of the voxels; to speech, of those on the left alone.

        All people have it at the same place. Only the back of this brain responds to anything: what is heard has no
        cortex of its own.
        """
        ras = self.protocol.affine[:3, :3] @ self.voxels.T + self.protocol.affine[:3, 3:]
        answers = ras[1] > np.quantile(ras[1], 2 / 3)
        if speech:
            answers &= ras[0] < 0
        return np.where(answers, HEARD_RESPONSE * self.parameters.mean_response, 0.0)

    def trials(self, evoked: NDArray[np.float64], run: int, kinds: Sequence[Kind] = ()) -> NDArray[np.float64]:
        """Turn noiseless responses of the trials of a run into what happens: trial noise and lapses.

        Parameters
        ----------
        evoked : array of shape (n_trials, n_responsive)
        run : int
        kinds : sequence of Kind
            Of each trial; all are "picture" when omitted. To "half" the picture's part of the response is halved,
            "lapsed" trials are not looked at, at "blank" ones nothing happens but what happens at rest, nor at
            "regulate" ones but for what a `Regulator` adds. What is heard has no trial noise: it adds to what is seen,
            which has.

        Returns
        -------
        array of shape (n_trials, n_responsive)
        """
        kind = np.array(kinds or ["picture"] * len(evoked))[:, None]
        rng = generator(self.seed, "trials", run)
        lapsed = (rng.random((len(evoked), 1)) < self.parameters.lapses) | (kind == "lapsed")
        half = self.mean + 0.5 * (evoked - self.mean)
        seen = np.where(lapsed, LAPSED_RESPONSE * self.mean, np.where(kind == "half", half, evoked))
        blank, heard = np.isin(kind, ("blank", "regulate")), np.isin(kind, HEARD)
        seen = np.where(heard, evoked, seen)
        happened: NDArray[np.float64] = np.where(blank, 0.0, seen) + self.noise.draw(rng, ~(blank | heard)[:, 0])
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
    seed: int,
    protocol: Protocol | None = None,
    parameters: ResponseParameters | None = None,
    population: Population | None = None,
) -> Participant:
    """Put a person into a scanner.

    Parameters
    ----------
    seed : int
        Head, person and noise all follow from it.
    protocol : Protocol, optional
    parameters : ResponseParameters, optional
    population : Population, optional
        Whose member the person is: the same one for all participants when omitted.

    Raises
    ------
    ValueError
        If the visual part of this head has fewer voxels than are to respond.
    """
    protocol = protocol or Protocol()
    parameters = parameters or ResponseParameters()
    population = population or Population()
    head = make_head(seed)
    grid = _grid_ras(protocol)
    cortex = _visual_cortex(head, grid)
    if len(cortex) < parameters.n_responsive:
        raise ValueError(
            f"expected at least {parameters.n_responsive} voxels of visual cortex, got {len(cortex)}: "
            "larger voxels need fewer"
        )
    every = population.voxels(seed, grid[:, *cortex.T].T)
    preference = every.responds - _BACKWARD * every.places_mm[:, 1] / BRAIN_AXES_MM[1]
    chosen = np.sort(np.argsort(preference)[::-1][: parameters.n_responsive])
    own = every.take(chosen)
    rng = generator(seed, "participant")
    waves = make_waves(rng, {_DELAY_MM: 1.0})
    delay = 0.4 * waves(own.places_mm) @ rng.standard_normal(waves.size)
    delay += parameters.hrf_offset_s * rng.standard_normal()
    tuned = leading_directions(own.tuning * own.gain)
    # Noise grows with the gain, as tuning does: the same part of it in every voxel stays along the leading directions.
    noise = population.noise(seed, own.places_mm, tuned / np.linalg.norm(tuned, axis=0))
    return Participant(
        seed=seed,
        protocol=protocol,
        parameters=parameters,
        head=head,
        voxels=cortex[chosen],
        mean=parameters.mean_response * own.mean,
        weights=parameters.tuning * own.gain * own.tuning,
        noise=noise.scaled(parameters.trial_noise * own.gain),
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


def _visual_cortex(head: Head, grid: NDArray[np.float64]) -> NDArray[np.intp]:
    """Grid indices (n, 3) of grey matter in the back of the head."""
    grey = _on_grid(head.grey, head, grid)
    return np.argwhere((grey >= 0.4) & (grid[1] <= -15) & (grid[2] <= 45))
