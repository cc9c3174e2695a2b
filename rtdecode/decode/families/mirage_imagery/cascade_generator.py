"""Stable Cascade as MIRAGE draws with it: stage C from embeddings and a low-level picture, then stages B and A.

A stage's network is opened when it is first needed and not before, in the order C, B, A: `open` may keep what it opened
or let it go, which is what a card of 24 GB needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import CascadeTable
from rtdecode.decode.runtime.runner import Runner
from rtdecode.decode.sampling.gdf import (
    GdfSchedule,
    diffused,
    gdf_schedule,
    rescaled_guidance,
    sample_gdf,
    sample_gdf_student,
)
from rtdecode.decode.sampling.noise import key_of
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack

PARTS = ("stage_c", "stage_b", "stage_a")
DIFFUSE, STAGE_C, START_B, STAGE_B = 1, 2, 3, 4
"""Numbers of the noise streams; the step of a stage follows its number."""
_LEVELS = 2.0**32

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guides:
    """What stage C is guided by, mixed: each (1, n, width).

    Attributes
    ----------
    text, image : ndarray
        Wanted.
    empty_text, pooled : ndarray
        Of the empty caption; pooled is told in either case.
    """

    text: Float32
    image: Float32
    empty_text: Float32
    pooled: Float32


def mixed_guides(
    image: Float32, text: Float32 | None, empty_text: Float32, pooled: Float32, text_share: float
) -> Guides:
    """Mix embeddings with what stands for nothing, as published.

    Parameters
    ----------
    image : ndarray of shape (1, d)
        Image embedding.
    text : ndarray of shape (n, w) or None
        Text tokens; None gives all the weight to the image.
    empty_text : ndarray of shape (n, w)
    pooled : ndarray of shape (1, w)
        Both of the empty caption.
    text_share : float
    """
    share = np.float32(0 if text is None else text_share)
    one = np.float32(1)
    wanted = empty_text * (one - share) ** 5
    if text is not None:
        wanted = text * share + wanted
    return Guides(
        text=np.asarray(wanted[None], np.float32),
        image=np.asarray((image * (one - share))[None], np.float32),
        empty_text=empty_text[None],
        pooled=pooled[None],
    )


class CascadeGenerator:
    """Draws pictures.

    Parameters
    ----------
    pack : EnginePack
    runner : Runner
    table : CascadeTable

    Raises
    ------
    EngineError
        Parts are missing.
    """

    def __init__(self, pack: EnginePack, runner: Runner, table: CascadeTable) -> None:
        if missing := [name for name in PARTS if name not in runner.parts]:
            raise EngineError(f"pack {pack.name}: missing parts {', '.join(missing)}; import the weights again")
        self.table = table
        self._runner = runner
        self._c, self._b, self._a = (runner.open(name) for name in PARTS)
        self._shapes = {name: pack.description.stage(name).inputs["x"][1:] for name in PARTS[:2]}
        student = table.sampler_c == "consistency"
        self._sample_c = sample_gdf_student if student else sample_gdf
        kept = table.steps_c if student else int(table.steps_c * table.strength)
        self.schedule_c = gdf_schedule(kept, start=table.strength, shift=table.shift_c) if kept else None
        self.schedule_b = gdf_schedule(table.steps_b, shift=table.shift_b)

    def with_schedules(self, c: GdfSchedule | None, b: GdfSchedule) -> CascadeGenerator:
        """Return one that follows other schedules, as few-step students need."""
        other = object.__new__(CascadeGenerator)
        other.__dict__.update(self.__dict__, schedule_c=c, schedule_b=b)
        return other

    def draw(self, guides: Guides, low_level: Any | None, samples: int, *, seed: int) -> Any:
        """Draw pictures (samples, 3, h, w), about 0..1.

        Parameters
        ----------
        guides : Guides
        low_level : array of shape (1, 16, h, w) or None
            Latent of the low-level picture, of the runner; None begins from noise.
        samples : int
            Of one batch: the rescaling looks at them together.
        seed : int
        """
        return self.picture(self.fine(self.coarse(guides, low_level, samples, seed=seed), guides, seed=seed))

    def coarse(self, guides: Guides, low_level: Any | None, samples: int, *, seed: int) -> Any:
        """Sample stage C's latents (samples, 16, h, w)."""
        runner, table = self._runner, self.table
        shape = (samples, *self._sides("stage_c"))
        schedule = self.schedule_c
        noise = runner.normal(key_of(seed, DIFFUSE), shape)
        if low_level is None:
            schedule, x = gdf_schedule(table.steps_c, shift=table.shift_c), noise
        elif schedule is None:
            return runner.join([low_level] * samples)
        else:
            x = diffused(runner.join([low_level] * samples), noise, table.strength)
        guided = table.guidance_c != 1
        told = {
            "text": self._sides_of(guides.text, guides.empty_text, samples, guided),
            "pooled": self._sides_of(guides.pooled, guides.pooled, samples, guided),
            "image": self._sides_of(guides.image, guides.image * 0, samples, guided),
        }

        def predict(x: Any, r: np.float32) -> Any:
            return self._guided(self._c, x, r, told, table.guidance_c)

        return self._sample_c(predict, x, self._noise(STAGE_C, shape, schedule, seed), schedule)

    def fine(self, coarse: Any, guides: Guides, *, seed: int) -> Any:
        """Sample stage B's latents (samples, 4, h, w)."""
        runner, samples = self._runner, len(coarse)
        shape = (samples, *self._sides("stage_b"))
        guided = self.table.guidance_b != 1
        told = {
            "effnet": runner.join([coarse, coarse * 0] if guided else [coarse]),
            "pooled": self._sides_of(guides.pooled, guides.pooled, samples, guided),
        }

        def predict(x: Any, r: np.float32) -> Any:
            return self._guided(self._b, x, r, told, self.table.guidance_b)

        start = runner.normal(key_of(seed, START_B), shape)
        return sample_gdf(predict, start, self._noise(STAGE_B, shape, self.schedule_b, seed), self.schedule_b)

    def picture(self, fine: Any) -> Any:
        """Decode stage B's latents, one by one: what stage A needs of memory grows with the pictures."""
        return self._runner.join([self._a({"latent": fine[i : i + 1]})["picture"] for i in range(len(fine))])

    def _guided(self, network: Any, x: Any, r: np.float32, told: dict[str, Any], guidance: float) -> Any:
        both = x if guidance == 1 else self._runner.join([x, x])
        level = self._runner.level(round(float(r) * _LEVELS), both)
        found = network({"x": both, "level": level, **told})["noise"]
        if guidance == 1:
            return found
        return rescaled_guidance(found[: len(x)], found[len(x) :], guidance, self.table.rescale)

    def _sides_of(self, wanted: Float32, unwanted: Float32, samples: int, guided: bool) -> Any:
        sides = [wanted, unwanted] if guided else [wanted]
        rows = np.concatenate([np.repeat(side, samples, 0) for side in sides])
        return self._runner.array(np.ascontiguousarray(rows, np.float32))

    def _noise(self, stream: int, shape: tuple[int, ...], schedule: GdfSchedule, seed: int) -> list[Any]:
        """Noise of each step but the last, which needs none."""
        return [self._runner.normal(key_of(seed, stream, i), shape) for i in range(schedule.steps - 1)]

    def _sides(self, stage: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self._shapes[stage])
