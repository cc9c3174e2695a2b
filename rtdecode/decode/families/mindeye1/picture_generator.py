"""Pictures of MindEye1's image tokens: Versatile Diffusion's image flow, or SD Image Variations, whatever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rtdecode.decode.arrays import Float32
from rtdecode.decode.families.mindeye1.mindeye1_description import GeneratorLora, GeneratorTable
from rtdecode.decode.runtime.runner import Runner
from rtdecode.decode.sampling.edm import NoisePredictor, guide
from rtdecode.decode.sampling.noise import key_of
from rtdecode.decode.sampling.students import sample_student, student_times
from rtdecode.decode.sampling.unipc import noised, unipc, unipc_times
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.statistics import row_cosines

PARTS = ("generator_context", "generator", "generator_coder", "generator_coder_encoder")
PICK = "embedder"
_SCALE = 0.18215
_LENGTH_FLOOR = np.float32(1e-6)
POSTERIOR, START, FRESH = 1, 2, 3
"""Numbers of the noise streams; that of the prior is 0. The fresh noise of a step is told by it and the sample."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Pictures of one trial.

    Attributes
    ----------
    latents : array of shape (samples, 4, h, w)
    pictures : array of shape (samples, 3, h, w)
        As the autoencoder gives them, about -1..1.
    best : int
        The one whose tokens are most like the brain's.
    similarities : ndarray of shape (samples,), float32, or None
        Cosines that decided; None with one sample or without the embedder.
    """

    latents: Any
    pictures: Any
    best: int
    similarities: Float32 | None


def condition_of(tokens: Float32, table: GeneratorTable) -> Float32:
    """Return what the generator is guided by: tokens (n, t, d), of Versatile Diffusion over the length of the first."""
    if table.kind == "image-variations":
        return tokens
    return np.asarray(tokens / (np.linalg.norm(tokens[:, :1], axis=2, keepdims=True) + _LENGTH_FLOOR))


class PictureGenerator:
    """Draws samples and picks one.

    Parameters
    ----------
    pack : EnginePack
    runner : Runner
    table : GeneratorTable
    lora : GeneratorLora or None
        What was fused into the network and is to be sampled otherwise than it.

    Raises
    ------
    EngineError
        Parts are missing, or the steps are not to be had.
    """

    def __init__(
        self, pack: EnginePack, runner: Runner, table: GeneratorTable, lora: GeneratorLora | None = None
    ) -> None:
        if missing := [name for name in PARTS if name not in runner.parts]:
            raise EngineError(f"pack {pack.name}: missing parts {', '.join(missing)}; import the weights again")
        self.table = table
        self._runner = runner
        self._context, self._step, self._decode, self._encode = (runner.open(name) for name in PARTS)
        self._embed = runner.open(PICK) if PICK in runner.parts else None
        if table.samples > 1 and self._embed is None:
            raise EngineError(
                f"pack {pack.name}: {table.samples} samples need the embedder to pick one: import it, or one sample"
            )
        self._side = pack.description.size("generator", "sample_size")
        self._sampler = None if lora is None else lora.sampler
        if lora is not None and lora.sampler == "ddim" and table.steps != lora.steps:
            raise EngineError(
                f"pack {pack.name}: expected {lora.steps} steps, which the LoRA in the generator was made for, got "
                f"{table.steps}: leave decode.unclip_steps out"
            )
        try:
            self._times = self._spaced(1.0), self._spaced(table.strength)
        except ValueError as error:
            raise EngineError(f"pack {pack.name}: {error}: change decode.unclip_steps") from None

    def draw(self, tokens: Float32, retrieval: Float32, blurry: Float32 | None, *, seed: int) -> Drawn:
        """Draw one picture of each sample's tokens.

        Parameters
        ----------
        tokens : ndarray of shape (samples, t, d), float32
            Clean tokens of the prior.
        retrieval : ndarray of shape (t, d), float32
            The brain's own tokens, which the pick compares with.
        blurry : ndarray of shape (3, h, w), float32, or None
            Picture to begin from, in about 0..1, not cut to it; None begins from noise.
        seed : int
        """
        start, times = self._start(len(tokens), blurry, seed)
        condition = condition_of(tokens, self.table)
        latents, pictures = [], []
        for at in range(0, len(tokens), self.table.batch):
            rows = slice(at, at + self.table.batch)
            fresh = self._fresh(range(at, at + len(condition[rows])), len(times) - 1, seed)
            latents.append(self._sampled(self._guided(condition[rows]), start[rows], fresh, times))
            pictures.append(self._decode({"latent": latents[-1]})["picture"])
        drawn = self._runner.join(pictures)
        similarities = self._similarities(drawn, retrieval)
        best = 0 if similarities is None else int(np.argmax(np.where(np.isnan(similarities), -np.inf, similarities)))
        return Drawn(latents=self._runner.join(latents), pictures=drawn, best=best, similarities=similarities)

    def _spaced(self, strength: float) -> list[int]:
        if self._sampler is None:
            return [int(t) for t in unipc_times(self.table.steps, strength)]
        return student_times(self._sampler, self.table.steps, strength)

    def _sampled(self, predict: NoisePredictor, x: Any, fresh: list[Any], times: list[int]) -> Any:
        if self._sampler is None:
            return unipc(predict, x, times)
        return sample_student(self._sampler, predict, x, fresh, times)

    def _fresh(self, samples: range, steps: int, seed: int) -> list[Any]:
        """Noise of each step but the last, of these samples; none where the path is followed without any."""
        if self._sampler in (None, "ddim"):
            return []
        runner, shape = self._runner, (1, 4, self._side, self._side)
        return [
            runner.join([runner.normal(key_of(seed, FRESH, step, i), shape) for i in samples]) for step in range(steps)
        ]

    def _guided(self, condition: Float32) -> NoisePredictor:
        runner, guidance = self._runner, self.table.guidance
        wanted = runner.array(np.ascontiguousarray(condition))
        guided = guidance != 1
        sides = [wanted * 0, wanted] if guided else [wanted]
        context = self._context({"tokens": runner.join(sides)})

        def predict(x: Any, t: int) -> Any:
            both = runner.join([x] * len(sides))
            noise = self._step({"x": both, "t": runner.level(t, both), **context})["noise"]
            return guide(noise[len(x) :], noise[: len(x)], guidance) if guided else noise

        return predict

    def _start(self, samples: int, blurry: Float32 | None, seed: int) -> tuple[Any, list[int]]:
        runner, shape = self._runner, (1, 4, self._side, self._side)
        noise = runner.join([runner.normal(key_of(seed, START, i), shape) for i in range(samples)])
        whole, last = self._times
        if blurry is None:
            return noise, whole
        seen = self._encode({"picture": runner.array(np.ascontiguousarray(blurry[None], np.float32))})
        sample = seen["mean"] + seen["deviation"] * runner.normal(key_of(seed, POSTERIOR), shape)
        return noised(runner.join([sample * _SCALE] * samples), noise, last[0]), last

    def _similarities(self, pictures: Any, retrieval: Float32) -> Float32 | None:
        if self._embed is None or len(pictures) == 1:
            return None
        seen = []
        for at in range(0, len(pictures), self.table.batch):
            shown = (pictures[at : at + self.table.batch] / 2 + 0.5).clip(0, 1)
            found = self._embed({"picture": shown})
            seen.append(self._runner.host(found["pooled" if self.table.kind == "image-variations" else "tokens"]))
        rows = np.concatenate(seen)
        return row_cosines(retrieval.reshape(-1), rows.reshape(len(rows), -1))
