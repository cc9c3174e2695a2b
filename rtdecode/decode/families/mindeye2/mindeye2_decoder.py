"""Decodes betas of one participant with the stages of a MindEye2 pack.

The arithmetic here is that of whatever arrays the stages work on (numpy, or torch on any device); noise is drawn where
they are, and does not depend on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.arrays import check_betas, pixels
from rtdecode.decode.families.mindeye2.mindeye2_stages import Float32, Hidden, MindEye2Stages
from rtdecode.decode.families.mindeye2.recipe import MindEye2Decoded, Recipe
from rtdecode.decode.resample import bilinear
from rtdecode.decode.sampling.edm import (
    euler,
    euler_times,
    offset_noise,
    refinement_times,
    renoised,
    timed,
    unclip_start,
)
from rtdecode.decode.sampling.noise import key_of
from rtdecode.decode.sampling.prior_sampler import prior_sampler
from rtdecode.errors import EngineError
from rtdecode.statistics import row_cosines

OUTPUT_PX = 256
"""Height and width at which published pictures are kept, blended and judged."""
_LATENT = 4
_PRIOR, _UNCLIP, _REFINER = range(3)
"""Numbers of the noise streams: a stage's noise does not depend on which others ran."""
_LATENT_NOISE, _UNCONDITIONAL, _NOISE = range(3)
"""The same within the unCLIP's; of its noise there are two for each step, the offset apart."""
_BRIGHTENED = (0.8, 0.2)
"""Factor and shift of its pictures; not 1/2 and 1/2: the published decoder brightens so."""


class MindEye2:
    """Decodes betas of one participant.

    Parameters
    ----------
    stages : MindEye2Stages
    recipe : Recipe

    Raises
    ------
    EngineError
        The recipe asks for what the pack has no stage for.
    """

    def __init__(self, stages: MindEye2Stages, recipe: Recipe | None = None) -> None:
        self._stages = stages
        self.recipe = recipe or Recipe()
        if self.recipe.best_of > 1 and stages.embed is None:
            raise EngineError(
                f"best_of {self.recipe.best_of} needs the embedder: import the unCLIP with its vision tower"
            )
        if self.recipe.small_autoencoder and stages.small_picture is None:
            raise EngineError("the recipe asks for the small autoencoder: import one with --small-autoencoder")
        self._sampler = prior_sampler(self.recipe.prior_sampler, stages.schedule, self.recipe.prior_steps)
        self._paint = stages.whole("unclip sampler", self._sample_picture)
        self.take_stages(stages)
        self.take_ridge(*stages.ridge)

    @property
    def absent(self) -> tuple[str, ...]:
        """What this pack cannot make."""
        stages = self._stages
        made = {
            "caption": stages.caption,
            "picture": stages.unclip and self._autoencoder,
            "blurry": stages.blurry,
            "refined": stages.unclip and self._autoencoder and stages.caption and stages.refiner,
        }
        return tuple(name for name, stage in made.items() if stage is None)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs otherwise than it was to, and why."""
        return self._stages.fallbacks()

    @property
    def voxels(self) -> int:
        """How many voxels the ridge takes."""
        return self._voxels

    def host(self, values: Any) -> NDArray[Any]:
        """Return an array of the stages as one of numpy."""
        return self._stages.host(values)

    @property
    def stages(self) -> MindEye2Stages:
        """What it decodes with."""
        return self._stages

    def take_stages(self, stages: MindEye2Stages) -> None:
        """Decode with others from now on: the same but for backbone and prior."""
        self._stages = stages
        self._settle = stages.whole("prior sampler", self._sample_tokens)  # what was captured holds the former prior

    def take_ridge(self, weight: Float32, bias: Float32) -> None:
        """Take a participant's ridge: weights (hidden, voxels) and bias (hidden,); nothing else changes.

        Raises
        ------
        EngineError
            It gives another number of hidden values than the backbone takes.
        """
        hidden = self._stages.ridge[0].shape[0]
        if weight.ndim != 2 or weight.shape[0] != hidden or bias.shape != (hidden,):
            raise EngineError(
                f"ridge: expected weights ({hidden}, voxels) and bias ({hidden},) for this backbone, got "
                f"{weight.shape} and {bias.shape}: was it fitted for another pack?"
            )
        self._voxels = int(weight.shape[1])
        self._weight = self._stages.array(np.ascontiguousarray(weight.T, dtype=np.float32))
        self._bias = self._stages.array(np.ascontiguousarray(bias, dtype=np.float32))

    def embed(self, betas: NDArray[np.floating[Any]]) -> Hidden:
        """Pass betas through ridge and backbone.

        Parameters
        ----------
        betas : ndarray of shape (voxels,) or (repeats, voxels)
            Repeats of one stimulus: their outputs are averaged, each counting once. (The published evaluation always
            averages three: it takes a single beta three times, and the first of two twice.)

        Returns
        -------
        Hidden
            Of one stimulus.

        Raises
        ------
        EngineError
            The betas are of another mask, or not all finite.
        """
        rows = check_betas(betas, self._voxels)
        out = self._stages.backbone(self._stages.array(rows) @ self._weight + self._bias)
        return Hidden(
            tokens=out.tokens.mean(0)[None],
            retrieval=out.retrieval.mean(0)[None],
            latent=None if out.latent is None else out.latent.mean(0)[None],
        )

    def clean(self, hidden: Hidden, *, seed: int) -> Any:
        """Sample clean tokens (1, tokens, dim) with the prior."""
        noise = self._stages.normal(key_of(seed, _PRIOR), (self._sampler.draws, *hidden.tokens.shape))
        return self._settle(hidden.tokens, noise)

    def _sample_tokens(self, condition: Any, noise: Any) -> Any:
        def predict(x: Any, t: int) -> Any:
            return self._stages.prior(x, t, condition, self.recipe.prior_guidance)

        return self._sampler.sample(predict, list(noise))

    def caption(self, tokens: Any) -> str | None:
        """Caption clean tokens (1, tokens, dim); None without the stages."""
        return None if self._stages.caption is None else self._stages.caption(tokens)[0]

    def picture(self, hidden: Hidden, tokens: Any, *, seed: int) -> Float32 | None:
        """Make a picture (3, h, w) in 0..1 of clean tokens; None without the stages."""
        made = self._painted(hidden, tokens, seed=seed)
        return None if made is None else pixels(self._stages.host(made)[0], *_BRIGHTENED)

    def image(self, hidden: Hidden, tokens: Any, *, seed: int) -> NDArray[np.uint8] | None:
        """Make the same picture as bytes (h, w, 3), which are made where the networks run."""
        made = self._painted(hidden, tokens, seed=seed)
        return None if made is None else self._stages.image(made, *_BRIGHTENED)

    def _painted(self, hidden: Hidden, tokens: Any, *, seed: int) -> Any:
        """Make a picture (1, 3, h, w) as the autoencoder gives it; None without the stages."""
        stages, n = self._stages, self.recipe.best_of
        if stages.unclip is None or self._autoencoder is None:
            return None
        made = [self._paint(tokens, *self._unclip_noise(tokens, seed, i)) for i in range(n)]
        if n == 1 or stages.embed is None:
            return made[0]
        small = [bilinear(pixels(stages.host(one)[0], *_BRIGHTENED), OUTPUT_PX)[None] for one in made]
        seen = [stages.embed(stages.array(one)) for one in small]
        likeness = [self.similarities(hidden, stages.host(tokens))[0] for tokens in seen]
        return made[int(np.argmax(likeness))]

    def blurry(self, hidden: Hidden) -> Float32 | None:
        """Make the low-level branch's picture (3, h, w); None without the stages."""
        if self._stages.blurry is None or hidden.latent is None:
            return None
        return pixels(self._stages.host(self._stages.blurry(hidden.latent))[0])

    def refine(self, picture: Float32, caption: str, *, seed: int) -> Float32 | None:
        """Refine a picture (3, h, w) with its caption; None without the stages."""
        stages, recipe, refiner = self._stages, self.recipe, self._stages.refiner
        if refiner is None:
            return None
        side = stages.latent_side
        enlarged = bilinear(bilinear(picture, OUTPUT_PX), side * refiner.factor)
        sample, noise = stages.normal(key_of(seed, _REFINER), (2, 1, _LATENT, side, side))
        wanted, unwanted = refiner.prompt(caption), refiner.prompt(recipe.negative_prompt)
        times, sigmas = refinement_times(recipe.refine_steps, recipe.refine_timepoint)
        start = refiner.encode(stages.array(enlarged[None] * 2 - 1), sample) + noise * float(sigmas[0])
        latent = euler(lambda x, t: refiner.noise(x, t, wanted, unwanted, recipe.refine_guidance), start, times, sigmas)
        return pixels(stages.host(refiner.picture(latent))[0])

    def blend(self, picture: Float32, blurry: Float32) -> Float32:
        """Mix a picture with the blurry one: (3, `OUTPUT_PX`, `OUTPUT_PX`)."""
        sharp, soft = self.recipe.blend
        mixed = (sharp * bilinear(picture, OUTPUT_PX) + soft * bilinear(blurry, OUTPUT_PX)) / (sharp + soft)
        return mixed.astype(np.float32)

    def similarities(self, hidden: Hidden, pool: NDArray[Any]) -> Float32:
        """Compare with every picture of a pool, exactly.

        Parameters
        ----------
        hidden : Hidden
        pool : ndarray of shape (n, tokens, dim)
            Tokens of the pictures.

        Returns
        -------
        ndarray of shape (n,), float32
            Cosines over all tokens together; `argsort` of their negative ranks the pool.
        """
        return row_cosines(self._stages.host(hidden.retrieval).reshape(-1), pool.reshape(len(pool), -1))

    def decode(self, betas: NDArray[np.floating[Any]], *, seed: int) -> MindEye2Decoded:
        """Make everything that the pack can make of one beta, or of repeats.

        Parameters are those of `embed`; the seed decides all noise.

        Raises
        ------
        EngineError
            As `embed`.
        """
        hidden = self.embed(betas)
        tokens = self.clean(hidden, seed=seed)
        caption, picture, blurry = self.caption(tokens), self.picture(hidden, tokens, seed=seed), self.blurry(hidden)
        able = picture is not None and caption is not None
        refined = (
            self.refine(picture, caption, seed=seed) if able and picture is not None and caption is not None else None
        )
        best = picture if refined is None else refined
        return MindEye2Decoded(
            hidden=hidden,
            tokens=self._stages.host(tokens)[0],
            caption=caption,
            picture=picture,
            blurry=blurry,
            refined=refined,
            blended=None if best is None or blurry is None else self.blend(best, blurry),
            absent=self.absent,
        )

    @property
    def _autoencoder(self) -> Callable[[Any], Any] | None:
        return self._stages.small_picture if self.recipe.small_autoencoder else self._stages.picture

    def _unclip_noise(self, tokens: Any, seed: int, number: int) -> list[Any]:
        """Draw what a picture is sampled from; only noise that is used is drawn."""
        stages, recipe = self._stages, self.recipe
        latent = (1, _LATENT, stages.latent_side, stages.latent_side)

        def drawn(what: int, shape: Sequence[int]) -> Any:
            return stages.normal(key_of(seed, _UNCLIP, number, what), shape)

        fresh = recipe.unclip_steps if recipe.unclip_sampler == "consistency" else 1
        noise = [drawn(_LATENT_NOISE, latent)]
        for step in range(fresh):
            noise += [drawn(_NOISE + 2 * step, latent), drawn(_NOISE + 2 * step + 1, (1,))]
        return noise if recipe.unclip_guidance == 1 else [*noise, drawn(_UNCONDITIONAL, tokens.shape)]

    def _sample_picture(self, tokens: Any, latent: Any, *noise: Any) -> Any:
        """Sample a latent of tokens and the noise of `_unclip_noise`, and decode it."""
        unclip, decode, recipe = self._stages.unclip, self._autoencoder, self.recipe
        assert unclip is not None
        assert decode is not None

        def predict(x: Any, t: int) -> Any:
            return unclip.noise(x, t, context)

        context = unclip.context(tokens, noise[-1], recipe.unclip_guidance)
        times, sigmas = timed(recipe.unclip_times) if recipe.unclip_times else euler_times(recipe.unclip_steps)
        start = unclip_start(latent, noise[0], noise[1], float(sigmas[0]))
        if recipe.unclip_sampler != "consistency":
            return decode(euler(predict, start, times, sigmas))
        fresh = [offset_noise(*noise[at : at + 2]) for at in range(2, 2 * len(times), 2)]
        return decode(renoised(predict, start, fresh, times, sigmas))
