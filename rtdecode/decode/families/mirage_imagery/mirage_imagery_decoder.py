"""Decodes betas with the five published ridges of MIRAGE's imagery decoder, and draws what they predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from rtdecode.decode.arrays import Float32, check_betas
from rtdecode.decode.families.git_captions import CAPTION_CONTEXT, git_captions
from rtdecode.decode.families.mirage_imagery.cascade_generator import PARTS, CascadeGenerator, mixed_guides
from rtdecode.decode.families.mirage_imagery.frozen_statistics import FrozenStatistics, unit_rows
from rtdecode.decode.families.mirage_imagery.low_level_picture import (
    LEAST_UNIFORM,
    as_bytes,
    enhanced,
    sample_mixture,
    scaled,
)
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import HEADS, MirageImageryDescription
from rtdecode.decode.runtime.runner import Runner
from rtdecode.decode.sampling.noise import key_of
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.statistics import row_cosines

INTERNAL = (CAPTION_CONTEXT,)
LATENTS, CHOICE, COLOUR = 10, 11, 12
"""Numbers of the low level's noise streams: latents that are not given, mixtures, and colours."""
_LOW_LEVEL = ("vdvae", "effnet")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MirageImageryDecoded:
    """What one beta gave; None where the pack lacks a stage.

    Attributes
    ----------
    heads : mapping of str to ndarray
        Predictions by head, in the shapes of the targets.
    caption : str or None
    low_level : ndarray of shape (h, w, 3), uint8, or None
    picture : ndarray of shape (h, w, 3), uint8, or None
    absent : tuple of str
    """

    heads: Mapping[str, Float32]
    caption: str | None
    low_level: NDArray[np.uint8] | None
    picture: NDArray[np.uint8] | None
    absent: tuple[str, ...]


class MirageImagery:
    """Predicts by the pack's own heads, and draws, writes and compares what was predicted by any.

    Parameters
    ----------
    pack : EnginePack
    runner : Runner
    statistics : mapping of str to FrozenStatistics, or None
        By head; None takes those of the pack. Heads without any stay as they were predicted.

    Raises
    ------
    EngineError
        The pack asks for what it has no stage for.
    """

    def __init__(
        self, pack: EnginePack, runner: Runner, *, statistics: Mapping[str, FrozenStatistics] | None = None
    ) -> None:
        self.said = pack.described(MirageImageryDescription)
        self._runner = runner
        self._pack = pack
        self._heads = {name: runner.open(f"{name}_head") for name in HEADS if f"{name}_head" in runner.parts}
        self.statistics = statistics if statistics is not None else pack_statistics(pack)
        self._caption = git_captions(pack, runner) if "captioner" in runner.parts else None
        self._generator = self._opened_generator(pack, runner)
        self._vdvae, self._effnet = (runner.open(name) if name in runner.parts else None for name in _LOW_LEVEL)
        self._embed = runner.open("embedder") if "embedder" in runner.parts else None
        if self._generator and self.said.generator.samples > 1 and self._embed is None:
            raise EngineError(
                f"pack {pack.name}: several samples need the embedder to pick one: import it, or one sample"
            )

    @property
    def absent(self) -> tuple[str, ...]:
        """What this pack cannot make."""
        made = {"caption": self._caption, "picture": self._generator, "low_level": self._vdvae}
        return tuple(name for name, stage in made.items() if stage is None)

    @property
    def voxels(self) -> int:
        """How many voxels the pack's heads take; 0 without heads."""
        first = next(iter(self._heads), None)
        return 0 if first is None else self.said.size(f"{first}_head", "voxels")

    @property
    def draws(self) -> bool:
        """Whether it can draw a picture."""
        return self._generator is not None

    def raw(self, betas: NDArray[np.floating[Any]]) -> dict[str, Float32]:
        """Predict by every head of the pack, flattened.

        Parameters
        ----------
        betas : ndarray of shape (voxels,) or (n, voxels)
            Each standardised within its task; the retrieval head takes them at length 1.

        Returns
        -------
        dict of str to ndarray of shape (n, m)

        Raises
        ------
        EngineError
            The pack has no heads, or the betas are of another mask or not all finite.
        """
        if not self._heads:
            raise EngineError(f"pack {self._pack.name}: expected heads, got none; import it with --ridges")
        rows = check_betas(betas, self.voxels)
        found: dict[str, Float32] = {}
        for name, compute in self._heads.items():
            given = np.asarray(unit_rows(rows), np.float32) if name == "retrieval" else rows
            values = compute({"betas": self._runner.array(np.ascontiguousarray(given))})["values"]
            found[name] = np.asarray(self._runner.host(values), np.float32)
        return found

    def predict(self, betas: NDArray[np.floating[Any]]) -> dict[str, Float32]:
        """Predict and normalise, in the shapes of the targets: (n, tokens, channels), the low level (n, values)."""
        return {name: self.normalised(name, values) for name, values in self.raw(betas).items()}

    def normalised(self, name: str, values: Float32) -> Float32:
        """Normalise raw predictions (n, m) of a head, as far as there are statistics, and give them their shape.

        As published, tokens of the retrieval head are brought to length 1 only where predictions are normalised.
        """
        shape = tuple(self.said.shapes[name])  # type: ignore[index]
        if name not in self.statistics:
            return values.reshape(len(values), *shape)
        found = self.statistics[name](values).reshape(len(values), *shape)
        return np.asarray(unit_rows(found) if name == "retrieval" else found, np.float32)

    def decode(self, betas: NDArray[np.floating[Any]], *, seed: int) -> MirageImageryDecoded:
        """Make everything that the pack can make of one beta, or of the mean of repeats.

        Raises
        ------
        EngineError
            As `raw`.
        """
        mean = check_betas(betas, self.voxels).mean(0, keepdims=True)
        heads = {name: values[0] for name, values in self.predict(mean).items()}
        low_level = self.low_level(heads, seed=seed)
        return MirageImageryDecoded(
            heads=heads,
            caption=self.caption(heads),
            low_level=low_level,
            picture=self.picture(heads, low_level, seed=seed),
            absent=self.absent,
        )

    def caption(self, heads: Mapping[str, Float32]) -> str | None:
        """Write what the prompt head predicted; None without it."""
        if self._caption is None or "prompt" not in heads:
            return None
        return self._caption(self._runner.array(np.ascontiguousarray(heads["prompt"][None], np.float32)))[0]

    def low_level(self, heads: Mapping[str, Float32], *, seed: int) -> NDArray[np.uint8] | None:
        """Draw the low-level picture, enlarged and sharpened; None without its stages."""
        if self._vdvae is None or "low_level" not in heads:
            return None
        runner, inputs = self._runner, self.said.stage("vdvae").inputs
        latents = np.ascontiguousarray(heads["low_level"][None], np.float32)
        noise = runner.normal(key_of(seed, LATENTS), (1, int(inputs["noise"][1])))
        logits = runner.host(self._vdvae({"latents": runner.array(latents), "noise": noise})["logits"])
        *sides, values = logits.shape

        def uniform(stream: int, last: int) -> Float32:
            drawn = ndtr(runner.host(runner.normal(key_of(seed, stream), (*sides, last))).astype(np.float64))
            return np.asarray(LEAST_UNIFORM + (1 - 2 * LEAST_UNIFORM) * drawn, np.float32)

        table = self.said.generator
        small = as_bytes(sample_mixture(logits, uniform(CHOICE, values // 10), uniform(COLOUR, 3)))[0]
        return enhanced(small, px=table.low_level_px, sharpness=table.sharpness, contrast=table.contrast)

    def picture(
        self, heads: Mapping[str, Float32], low_level: NDArray[np.uint8] | None, *, seed: int
    ) -> NDArray[np.uint8] | None:
        """Draw samples and keep the one most like the retrieval head; None without the stages."""
        if self._generator is None or "image" not in heads:
            return None
        table, runner = self.said.generator, self._runner
        guides = mixed_guides(
            heads["image"], heads.get("text"), self._empty["text"], self._empty["pooled"], table.text_share
        )
        start = None
        if low_level is not None and self._effnet is not None:
            start = self._effnet({"picture": runner.array(scaled(low_level))})["latent"]
        samples = table.samples if "retrieval" in heads else 1
        best, likeness = None, -np.inf
        for at in range(0, samples, table.batch):
            n = min(table.batch, samples - at)
            drawn = self._generator.draw(guides, start, n, seed=seed + (at << 40)).clip(0, 1)
            if samples == 1:
                best = drawn
                break
            assert self._embed is not None
            seen = runner.host(self._embed({"picture": drawn})["hidden"])
            cosines = row_cosines(heads["retrieval"].reshape(-1), seen.reshape(n, -1))
            found = np.where(np.isnan(cosines), -np.inf, cosines)
            place = int(np.argmax(found))
            if best is None or found[place] > likeness:
                best, likeness = drawn[place : place + 1], float(found[place])
        return runner.image(best, 1.0, 0.0)

    def _opened_generator(self, pack: EnginePack, runner: Runner) -> CascadeGenerator | None:
        if not set(PARTS) <= set(runner.parts):
            return None
        if not self.said.empty_caption:
            raise EngineError(f"pack {pack.name}: expected empty_caption beside the stages, got none; import it again")
        tensors = pack.tensors(self.said.empty_caption)
        self._empty = {"text": tensors["text"], "pooled": tensors["pooled"].reshape(1, -1)}
        return CascadeGenerator(pack, runner, self.said.generator)


def pack_statistics(pack: EnginePack) -> dict[str, FrozenStatistics]:
    """Read the frozen statistics of a pack's heads; empty where it has none.

    Raises
    ------
    EngineError
        Some of a head's are missing.
    """
    name = pack.described(MirageImageryDescription).statistics
    if not name:
        return {}
    tensors = pack.tensors(name)
    found = {}
    fields = ("predicted_mean", "predicted_deviation", "target_mean", "target_deviation")
    for head in {key.partition(".")[0] for key in tensors}:
        try:
            found[head] = FrozenStatistics(**{field: tensors[f"{head}.{field}"] for field in fields})
        except KeyError as error:
            raise EngineError(f"pack {pack.name}: {name}: expected {error.args[0]}, found none") from None
    return found
