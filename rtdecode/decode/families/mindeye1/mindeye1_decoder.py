"""Decodes betas of one participant with the stages of a MindEye1 pack (Scotti et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.arrays import Float32, check_betas
from rtdecode.decode.families.guided_prior import guided_prior
from rtdecode.decode.families.mindeye1.mindeye1_description import GeneratorTable, MindEye1Description
from rtdecode.decode.families.mindeye1.picture_generator import PARTS, PictureGenerator, condition_of
from rtdecode.decode.resample import bilinear
from rtdecode.decode.runtime.runner import Runner
from rtdecode.decode.sampling.noise import key_of
from rtdecode.decode.sampling.prior_sampler import PriorSampler, prior_sampler
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack

NEEDED = ("brain", "prior")
INTERNAL = ("generator_context",)
_PRIOR = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MindEye1Decoded:
    """What one beta, or several repeats, gave.

    Attributes
    ----------
    tokens : ndarray of shape (tokens, dim), float32
        Clean image tokens of the prior: of the sample that was picked.
    condition : ndarray of shape (tokens, dim), float32
        What the generator is guided by: of Versatile Diffusion the same over the length of the first token.
    retrieval : ndarray of shape (tokens, dim), float32
        What an `ImagePool` of tokens of pictures is searched with.
    blurry : ndarray of shape (3, h, w), float32, or None
        The low-level network's picture in 0..1.
    picture : ndarray of shape (h, w, 3), uint8, or None
    absent : tuple of str
        What could not be made because the pack lacks a stage.
    """

    tokens: Float32
    condition: Float32
    retrieval: Float32
    blurry: Float32 | None
    picture: NDArray[np.uint8] | None
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnNetwork:
    """The networks that each participant has for themselves.

    Attributes
    ----------
    brain, prior : callable
    low_level : callable or None
    runner : Runner
        Whose arrays they work on.
    sampler : PriorSampler
    voxels : int
    """

    brain: Callable[..., Any]
    prior: Callable[[Any, int, Any, float], Any]
    low_level: Callable[..., Any] | None
    runner: Runner
    sampler: PriorSampler
    voxels: int


def own_network(pack: EnginePack, runner: Runner, prior_steps: int | None) -> OwnNetwork:
    """Open the networks of a participant.

    Raises
    ------
    EngineError
        A stage is missing, or one cannot be loaded.
    """
    if missing := [name for name in NEEDED if name not in runner.parts]:
        raise EngineError(f"pack {pack.name}: missing stages {', '.join(missing)}; import the weights again")
    said = pack.description
    schedule = cosine_schedule(said.size("prior", "timesteps", 100))
    return OwnNetwork(
        brain=runner.open("brain"),
        prior=guided_prior(runner),
        low_level=runner.open("low_level") if "low_level" in runner.parts else None,
        runner=runner,
        sampler=prior_sampler("published", schedule, prior_steps or schedule.timesteps),
        voxels=said.size("brain", "voxels"),
    )


class MindEye1:
    """Decodes betas of one participant.

    Parameters
    ----------
    pack : EnginePack
        Of `rtdecode engines import mindeye1`.
    runner : Runner
    prior_steps : int or None
        Of DDIM; None or all of the prior's noise levels: DDPM, as published.
    generator : GeneratorTable or None
        How pictures are drawn; None: as the pack says, if it draws any.

    Raises
    ------
    EngineError
        A part that all else needs is missing, or one cannot be loaded.
    """

    def __init__(
        self,
        pack: EnginePack,
        runner: Runner,
        *,
        prior_steps: int | None = None,
        generator: GeneratorTable | None = None,
    ) -> None:
        self.own = own_network(pack, runner, prior_steps)
        said = pack.description
        table = generator or (said.generator if isinstance(said, MindEye1Description) else None)
        self.table = table or GeneratorTable(kind="versatile-diffusion", samples=1)
        lora = said.generator_lora if isinstance(said, MindEye1Description) else None
        draws = table is not None and set(PARTS) <= set(runner.parts)
        self._generator = PictureGenerator(pack, runner, self.table, lora) if draws else None
        self._px = 0
        if self._generator is not None:
            self._px = int(said.stage("generator_coder").outputs["picture"][2])
        self._runner = runner
        self._autoencoder = runner.open("blurry_autoencoder") if "blurry_autoencoder" in runner.parts else None

    @property
    def absent(self) -> tuple[str, ...]:
        """What this pack cannot make."""
        blurry = self.own.low_level is not None and self._autoencoder is not None
        return (*(() if blurry else ("blurry",)), *(() if self.draws else ("picture",)))

    @property
    def draws(self) -> bool:
        """Whether it can draw pictures."""
        return self._generator is not None

    @property
    def samples(self) -> int:
        """Pictures a trial, of which one is picked."""
        return self.table.samples if self.draws else 1

    @property
    def voxels(self) -> int:
        """How many voxels the network takes."""
        return self.own.voxels

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs otherwise than it was to, and why."""
        return self._runner.fallbacks()

    def decode(self, betas: NDArray[np.floating[Any]], *, seed: int) -> MindEye1Decoded:
        """Make everything that the pack can make of one beta, or of repeats.

        Parameters
        ----------
        betas : ndarray of shape (voxels,) or (repeats, voxels)
            Repeats of one stimulus are averaged, as published.
        seed : int
            Decides all noise.

        Raises
        ------
        EngineError
            The betas are of another mask, or not all finite.
        """
        mean = check_betas(betas, self.voxels).mean(0)
        said, retrieval = self.embed(mean)
        tokens = self.clean(said, seed=seed)
        blurry = self.blurry(mean)
        picture, best = self.picture(tokens, retrieval, blurry, seed=seed)
        return MindEye1Decoded(
            tokens=tokens[best],
            condition=condition_of(tokens[best : best + 1], self.table)[0],
            retrieval=retrieval,
            blurry=None if blurry is None else np.clip(blurry, 0, 1),
            picture=picture,
            absent=self.absent,
        )

    def embed(self, beta: Float32) -> tuple[Any, Float32]:
        """Pass a beta (voxels,) through the brain network: its tokens (1, t, d), and those for retrieval (t, d)."""
        runner = self.own.runner
        found = self.own.brain({"betas": runner.array(np.ascontiguousarray(beta[None], np.float32))})
        return found["tokens"], runner.host(found["retrieval"])[0]

    def clean(self, said: Any, *, seed: int) -> Float32:
        """Sample clean tokens with the prior, one set for each sample: (samples, t, d)."""
        own, n = self.own, self.samples
        runner = own.runner
        condition = runner.join([said] * n)
        noise = runner.normal(key_of(seed, _PRIOR), (own.sampler.draws, *condition.shape))
        found = own.sampler.sample(lambda x, t: own.prior(x, t, condition, 1.0), list(noise))
        return np.asarray(runner.host(found) / np.float32(np.sqrt(said.shape[2])), np.float32)

    def blurry(self, beta: Float32) -> Float32 | None:
        """Make the low-level picture (3, h, w), in about 0..1, not cut to it; None without the stages."""
        own = self.own
        if own.low_level is None or self._autoencoder is None:
            return None
        latent = own.low_level({"betas": own.runner.array(np.ascontiguousarray(beta[None], np.float32))})["latent"]
        given = self._runner.array(np.ascontiguousarray(own.runner.host(latent), np.float32))
        made = self._runner.host(self._autoencoder({"latent": given})["picture"])[0]
        return np.asarray(made / 2 + 0.5, np.float32)

    def picture(
        self, tokens: Float32, retrieval: Float32, blurry: Float32 | None, *, seed: int
    ) -> tuple[NDArray[np.uint8] | None, int]:
        """Draw a picture of each sample's tokens (samples, t, d), and keep the best: the picture, and its place.

        None and 0 without the stages.
        """
        if self._generator is None:
            return None, 0
        if blurry is not None and blurry.shape[1] != self._px:
            blurry = bilinear(blurry, self._px)
        drawn = self._generator.draw(tokens, retrieval, blurry, seed=seed)
        return self._runner.image(drawn.pictures[drawn.best : drawn.best + 1], 0.5, 0.5), drawn.best
