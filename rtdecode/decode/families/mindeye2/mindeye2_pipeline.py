"""A MindEye2 pack in a session: a participant's adapter in the place of the ridge, then backbone, prior and unCLIP."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.families.mindeye2.mindeye2_stages import Hidden, MindEye2Stages
from rtdecode.decode.pipeline import Embedded, Float32
from rtdecode.decode.score.adapter import Adapter
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settled:
    """Clean image tokens, and what the backbone said."""

    tokens: Any
    hidden: Hidden


class MindEye2Pipeline:
    """A `Pipeline` over a MindEye2 pack.

    The components of a participant's adapter span the backbone's hidden space (see `LatentMap`): folded with
    their basis they are a ridge layer, and from there on the published path is taken.

    Parameters
    ----------
    mind : MindEye2
    open_network : callable
        Puts backbone and prior of a participant's own pack in the place of those of some stages.
    seed : int
        Of the session: fixes, with the trial, all noise.
    """

    def __init__(
        self, mind: MindEye2, open_network: Callable[[EnginePack, MindEye2Stages], MindEye2Stages], *, seed: int = 0
    ) -> None:
        self._mind = mind
        self._shared = mind.stages
        self._open_network = open_network
        self._seed = seed
        self._adapter: Adapter | None = None
        self.absent = tuple(name for name in mind.absent if name in ("caption", "picture"))
        hidden = mind.embed(np.zeros(mind.voxels, np.float32))
        settled = Settled(tokens=mind.clean(hidden, seed=seed), hidden=hidden)
        self.caption(settled)
        self.picture(settled, "")

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs otherwise than it was to; see `TellsFallbacks`."""
        return self._mind.fallbacks

    def take_network(self, network: EnginePack | None, adapter: Adapter) -> None:
        """Take what ``rtdecode engines finetune`` has made; see `TakesNetwork`."""
        if network is None:
            self._mind.take_stages(self._shared)
            return
        try:
            network.described(MindEye2Description)
            own = self._open_network(network, self._shared)
        except EngineError as error:
            raise BundleError(str(error)) from None
        self._mind.take_stages(own)

    def take(self, adapter: Adapter) -> None:
        """Take a participant; see `Pipeline.take`."""
        scaled: Float32 = np.asarray(adapter.weights / adapter.scale[:, None], dtype=np.float32)
        bias = (adapter.intercept - adapter.mean @ scaled) @ adapter.basis + adapter.token_mean
        try:
            self._mind.take_ridge(np.asarray((scaled @ adapter.basis).T), bias.astype(np.float32, copy=False))
        except EngineError as error:
            raise BundleError(str(error)) from None
        self._adapter = adapter

    def embed(self, beta: Float32) -> Embedded:
        """Embed a beta; the tokens are the projector's, of the kind that retrieval compares with pictures'."""
        if self._adapter is None:
            raise EngineError("no participant is loaded: calibrate, or set decode.bundle")
        hidden = self._mind.embed(beta)
        tokens = self._mind.host(hidden.retrieval)[0].astype(np.float16)
        return Embedded(components=self._adapter.predict(beta), tokens=tokens, state=hidden)

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Settled:
        """Sample clean tokens with the prior."""
        hidden: Hidden = embedded.state
        return Settled(tokens=self._mind.clean(hidden, seed=self._seed_of(trial)), hidden=hidden)

    def caption(self, settled: Settled) -> str | None:
        """Sentence of clean tokens; None without the stages."""
        return self._mind.caption(settled.tokens)

    def picture(self, settled: Settled, trial: str) -> NDArray[np.uint8] | None:
        """Picture of clean tokens; see `Pipeline.picture`."""
        return self._mind.image(settled.hidden, settled.tokens, seed=self._seed_of(trial))

    def _seed_of(self, trial: str) -> int:
        return (self._seed << 32) | zlib.crc32(trial.encode())
