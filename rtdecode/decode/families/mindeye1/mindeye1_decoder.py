"""Decodes betas of one participant with the stages of a MindEye1 pack (Scotti et al. 2023).

It ends at image tokens and blurry picture, from which the published pictures were drawn by Versatile Diffusion. Each
participant has a whole network, which no visit can train: sessions do not run this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.arrays import Float32, check_betas, pixels
from rtdecode.decode.families.guided_prior import guided_prior
from rtdecode.decode.runtime.runner import Runner
from rtdecode.decode.sampling.noise import key_of
from rtdecode.decode.sampling.prior_sampler import prior_sampler
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack

NEEDED = ("brain", "prior")
_BLURRY = ("low_level", "blurry_autoencoder")
_PRIOR = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MindEye1Decoded:
    """What one beta, or several repeats, gave.

    Attributes
    ----------
    tokens : ndarray of shape (tokens, dim), float32
        Clean image tokens of the prior.
    condition : ndarray of shape (tokens, dim), float32
        The same over the length of the first token: what Versatile Diffusion is guided by.
    retrieval : ndarray of shape (tokens, dim), float32
        What an `ImagePool` of tokens of pictures is searched with.
    blurry : ndarray of shape (3, h, w), float32, or None
        The low-level network's picture in 0..1.
    absent : tuple of str
        What could not be made because the pack lacks a stage.
    """

    tokens: Float32
    condition: Float32
    retrieval: Float32
    blurry: Float32 | None
    absent: tuple[str, ...]


class MindEye1:
    """Decodes betas of one participant.

    Parameters
    ----------
    pack : EnginePack
        Of `rtdecode engines import mindeye1`.
    runner : Runner
    prior_steps : int or None
        Of DDIM; None or all of the prior's noise levels: DDPM, as published.

    Raises
    ------
    EngineError
        A part that all else needs is missing, or one cannot be loaded.
    """

    def __init__(self, pack: EnginePack, runner: Runner, *, prior_steps: int | None = None) -> None:
        if missing := [name for name in NEEDED if name not in runner.parts]:
            raise EngineError(f"pack {pack.name}: missing stages {', '.join(missing)}; import the weights again")
        said = pack.description
        self._runner = runner
        self._brain, self._prior = runner.open("brain"), guided_prior(runner)
        self._blurry = [runner.open(name) for name in _BLURRY] if set(_BLURRY) <= set(runner.parts) else None
        self._voxels = said.size("brain", "voxels")
        schedule = cosine_schedule(said.size("prior", "timesteps", 100))
        self._sampler = prior_sampler("published", schedule, prior_steps or schedule.timesteps)

    @property
    def absent(self) -> tuple[str, ...]:
        """What this pack cannot make."""
        return () if self._blurry else ("blurry",)

    @property
    def voxels(self) -> int:
        """How many voxels the network takes."""
        return self._voxels

    def decode(self, betas: NDArray[np.floating[Any]], *, seed: int) -> MindEye1Decoded:
        """Make everything that the pack can make of one beta, or of repeats.

        Parameters
        ----------
        betas : ndarray of shape (voxels,) or (repeats, voxels)
            Repeats of one stimulus are averaged, as published.
        seed : int
            Decides the noise of the prior.

        Raises
        ------
        EngineError
            The betas are of another mask, or not all finite.
        """
        runner = self._runner
        mean = runner.array(check_betas(betas, self._voxels).mean(0, keepdims=True))
        found = self._brain({"betas": mean})
        said = found["tokens"]
        noise = runner.normal(key_of(seed, _PRIOR), (self._sampler.draws, *said.shape))
        scaled = self._sampler.sample(lambda x, t: self._prior(x, t, said, 1.0), list(noise))
        tokens = runner.host(scaled)[0] / np.float32(np.sqrt(said.shape[2]))
        return MindEye1Decoded(
            tokens=tokens,
            condition=tokens / (np.linalg.norm(tokens[0]) + np.float32(1e-6)),
            retrieval=runner.host(found["retrieval"])[0],
            blurry=self._blurred(mean),
            absent=self.absent,
        )

    def _blurred(self, betas: Any) -> Float32 | None:
        if self._blurry is None:
            return None
        low_level, autoencoder = self._blurry
        return pixels(self._runner.host(autoencoder({"latent": low_level({"betas": betas})["latent"]})["picture"])[0])
