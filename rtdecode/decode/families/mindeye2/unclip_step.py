"""The unCLIP in two parts: what the tokens mean to it, once per picture, and the noise of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.runtime.runner import Compute
from rtdecode.decode.sampling.edm import guide

UNCLIP_SIZES = (768, 768, 0, 0)
"""Original height and width and the crop's top and left that the unCLIP is told."""
REFINER_SIZES = (768, 768, 0, 0, 1024, 1024)
"""The same of the refinement, and its target height and width."""
_FEATURES = 256
_MAX_PERIOD = 10_000.0
_ROUNDED_UP = [12, 106]


def size_features(numbers: Sequence[float]) -> NDArray[np.float32]:
    """Cosines and sines of picture sizes and places: shape (256 * len(numbers),).

    At 768 the last bit of a frequency shows, and exponentials in float32 differ between machines: these are rounded
    from float64, but for two that the published ones have one step higher.
    """
    half = _FEATURES // 2
    exponent = np.float32(-np.log(_MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    frequency[_ROUNDED_UP] = np.nextafter(frequency[_ROUNDED_UP], np.float32(1))
    angle = (np.array(numbers, np.float32)[:, None] * frequency).astype(np.float64)
    return np.concatenate([np.cos(angle), np.sin(angle)], 1).ravel().astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """Keys and values of the tokens, those of the unconditional ones behind them, and how far to lead away from these.

    Attributes
    ----------
    arrays : mapping of str to array
    sides : int
        2 with unconditional tokens, else 1.
    guidance : float
    """

    arrays: Mapping[str, Any]
    sides: int
    guidance: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unclip:
    """Noise of latents, whatever computes it.

    Attributes
    ----------
    context_part, step_part : callable
        Parts of the network: named arrays in, named arrays out.
    vector : array of shape (length,)
        What it is told of picture sizes.
    join : callable
        Puts arrays behind each other along the first axis.
    level : callable
        A timestep as an array with one value for each row of another.
    """

    context_part: Compute
    step_part: Compute
    vector: Any
    join: Callable[[Sequence[Any]], Any]
    level: Callable[[int, Any], Any]

    def context(self, tokens: Any, unconditional: Any | None, guidance: float) -> Context:
        """Compute what every step needs of tokens (b, n, d); guidance 1 needs no unconditional ones."""
        sides = [tokens] if guidance == 1 else [tokens, unconditional]
        arrays = self.context_part({"tokens": self.join(sides)})
        return Context(arrays=arrays, sides=len(sides), guidance=guidance)

    def noise(self, x: Any, t: int, context: Context) -> Any:
        """Predict the noise of a scaled latent (b, 4, h, w) at a timestep, guided."""
        both = self.join([x] * context.sides)
        vector = self.join([self.vector[None]] * len(both))
        noise = self.step_part({"x": both, "t": self.level(t, both), "vector": vector, **context.arrays})["noise"]
        return noise if context.sides == 1 else guide(noise[: len(x)], noise[len(x) :], context.guidance)
