"""From committed tokens to a picture: the prior's evaluations, the unCLIP's steps, the autoencoder."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.tiny.tiny_stages import TinyStages
from rtdecode.decode.sampling.edm import LEVELS, euler, euler_times
from rtdecode.decode.sampling.prior_sampler import prior_sampler
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import EngineError

Float32 = NDArray[np.float32]


class Painter:
    """Samples pictures in few steps from noise that a trial's name and a seed fix.

    Parameters
    ----------
    stages : TinyStages
    seed : int
        Of the session.
    prior_steps, unclip_steps : int or None
        Evaluations a picture; None takes what the pack says.

    Raises
    ------
    EngineError
        A number of steps is not from 1 to the number of noise levels.
    """

    def __init__(
        self, stages: TinyStages, *, seed: int = 0, prior_steps: int | None = None, unclip_steps: int | None = None
    ) -> None:
        asked = stages.sampling
        self._stages = stages
        self._seed = seed
        self._prior = prior_sampler(
            asked.prior.sampler,
            cosine_schedule(asked.prior.levels),
            asked.prior.steps if prior_steps is None else prior_steps,
        )
        try:
            self._times, self._sigmas = euler_times(asked.unclip.steps if unclip_steps is None else unclip_steps)
        except ValueError as error:
            raise EngineError(f"steps of the unCLIP: expected 1 to {LEVELS} ({error})") from None

    def paint(self, tokens: Float32, trial: str) -> NDArray[np.uint8]:
        """Draw a picture.

        Parameters
        ----------
        tokens : ndarray of shape (t, d), float32
            As committed to.
        trial : str
            The same trial starts from the same noise, so that revisions of its beta change the picture no more than
            the beta does.

        Returns
        -------
        ndarray of shape (height, width, 3), uint8
        """
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(zlib.crc32(trial.encode()),)))
        clean = self._sample_tokens(tokens[None], rng)
        latent, draft = self._sample_latent(clean, rng)
        picture = self._stages.autoencoder.run({"latent": latent, "draft": draft})["image"][0]
        rounded = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        return np.ascontiguousarray(rounded.transpose(1, 2, 0))

    def _sample_tokens(self, tokens: Float32, rng: np.random.Generator) -> Float32:
        """Clean tokens (1, t, d) by the prior."""
        noise = rng.standard_normal((self._prior.draws, *tokens.shape), dtype=np.float32)
        natural = tokens

        def predict(noisy: Float32, t: int) -> Float32:
            nonlocal natural
            out = self._stages.prior.run({"noisy": noisy, "t": np.array([t]), "tokens": tokens})
            natural = out["tokens_clean"]
            return np.asarray(out["clean"])

        self._prior.sample(predict, list(noise))
        return natural

    def _sample_latent(self, tokens: Float32, rng: np.random.Generator) -> tuple[Float32, Float32]:
        """Latent (1, c, h, w) by the unCLIP, and the draft picture beside it."""
        given = self._stages.unclip_context.run({"tokens": tokens})
        fixed = {name: given[name] for name in ("draft_latent", "context")}

        def predict(latent: Float32, t: int) -> Float32:
            out = self._stages.unclip.run({"latent": latent, "t": np.array([t]), **fixed})
            return np.asarray(out["noise"])

        noise = rng.standard_normal((1, *self._stages.sampling.unclip.latent), dtype=np.float32)
        start = noise * np.float32(self._stages.sampling.unclip.temperature) * np.sqrt(1 + self._sigmas[0] ** 2)
        latent = np.asarray(euler(predict, start, self._times, self._sigmas), dtype=np.float32)
        return latent, given["draft"]
