"""MIRAGE's imagery decoder in a session: the participant's ridges in the place of the published ones."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.arrays import Float32
from rtdecode.decode.families.mirage_imagery.frozen_statistics import FrozenStatistics, unit_rows
from rtdecode.decode.families.mirage_imagery.mirage_imagery_decoder import MirageImagery
from rtdecode.decode.pipeline import Embedded
from rtdecode.decode.score.adapter import Adapter
from rtdecode.errors import BundleError, EngineError

_FLOOR = 1e-4
"""Held-out explained variance below which a component is not brought to its spread: it would be noise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settled:
    """Predictions by head, in the shapes of the targets, and the low-level picture that was drawn of them."""

    heads: Mapping[str, Float32]
    low_level: NDArray[np.uint8] | None


class MirageImageryPipeline:
    """A `Pipeline`; see `rtdecode.testing.check_family`.

    A calibration's ridges shrink what they cannot predict. As the published decoder does with its test set, predictions
    of each head are brought back to the spread of the targets, by statistics that are frozen with the bundle: a
    component that explains a share r2 of held-out variance is predicted with that share of its variance.

    Parameters
    ----------
    mind : MirageImagery
    seed : int
        Of the session: fixes, with the trial, all noise.
    """

    def __init__(self, mind: MirageImagery, *, seed: int = 0) -> None:
        self._mind = mind
        self._seed = seed
        self._adapter: Adapter | None = None
        self._statistics: FrozenStatistics | None = None
        groups = mind.said.tokens.groups
        self._groups = {name: slice(*ends) for name, ends in groups.items()}
        made = {"caption": "prompt" in groups and "caption" not in mind.absent, "picture": mind.draws}
        self.absent = tuple(name for name, able in made.items() if not able)
        width = max((ends.stop for ends in self._groups.values()), default=0)
        settled = self._settled(np.zeros(width, np.float32), "")
        self.caption(settled)
        self.picture(settled, "")

    def take(self, adapter: Adapter) -> None:
        """Take a participant; see `Pipeline.take`."""
        width = max(ends.stop for ends in self._groups.values())
        if adapter.basis.shape[1] != width:
            raise BundleError(
                f"adapter: expected {width} values of {', '.join(self._groups)}, got {adapter.basis.shape[1]}: was it "
                "calibrated for another pack?"
            )
        square, told = np.square(adapter.basis.astype(np.float64)), np.where(adapter.r2 > _FLOOR, adapter.r2, 0)
        deviation, whole = np.sqrt(told @ square), np.sqrt((told > 0) @ square)
        self._statistics = FrozenStatistics(
            predicted_mean=adapter.token_mean,
            predicted_deviation=np.where(deviation > 0, deviation, 1.0),
            target_mean=adapter.token_mean,
            target_deviation=whole,
        )
        self._adapter = adapter

    def embed(self, beta: Float32) -> Embedded:
        """Predict all heads of a beta; the tokens are the prediction as it is, not brought to any spread."""
        if self._adapter is None:
            raise EngineError("no participant is loaded: calibrate, or set decode.bundle")
        components = self._adapter.predict(beta)
        values = np.asarray(components @ self._adapter.basis + self._adapter.token_mean, np.float32)
        return Embedded(components=components, tokens=values[None].astype(np.float16), state=values)

    def without(self, embedded: Embedded, components: NDArray[np.bool_]) -> Embedded:
        """Leave components out, so that a head that loses all of its own predicts its mean; see `LeavesOut`."""
        assert self._adapter is not None
        left_out = (embedded.components * components) @ self._adapter.basis
        return replace(embedded, state=np.asarray(embedded.state - left_out, np.float32))

    @property
    def final_width(self) -> int:
        """Values of CLIP's final embedding, which the image head predicts; see `HasFinal`. 0 without that head."""
        ends = self._groups.get("image", slice(0, 0))
        return int(ends.stop - ends.start)

    def final(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """Values of the image head."""
        return np.asarray(tokens.reshape(-1)[self._groups["image"]])

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Settled:
        """Normalise the predictions, and draw the low-level picture."""
        assert self._statistics is not None
        values: Float32 = embedded.state
        return self._settled(np.asarray(self._statistics(values[None])[0], np.float32), trial)

    def caption(self, settled: Settled) -> str | None:
        """Sentence of the prompt head; None without it."""
        return None if "caption" in self.absent else self._mind.caption(settled.heads)

    def preview(self, settled: Settled) -> NDArray[np.uint8] | None:
        """Return the low-level picture; None without its stages."""
        return settled.low_level

    def picture(self, settled: Settled, trial: str) -> NDArray[np.uint8] | None:
        """Picture by Stable Cascade; see `Pipeline.picture`."""
        return self._mind.picture(settled.heads, settled.low_level, seed=self._seed_of(trial))

    def _settled(self, values: Float32, trial: str) -> Settled:
        heads = {}
        for name, group in self._groups.items():
            shape = tuple(self._mind.said.shapes[name])  # type: ignore[index]
            own = values[group].reshape(shape)
            heads[name] = np.asarray(unit_rows(own) if name == "retrieval" else own, np.float32)
        return Settled(heads=heads, low_level=self._mind.low_level(heads, seed=self._seed_of(trial)))

    def _seed_of(self, trial: str) -> int:
        return (self._seed << 32) | zlib.crc32(trial.encode())
