"""A MindEye2 pack in a session: a participant's adapter in the place of the ridge, then backbone, prior and unCLIP."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.arrays import in_bytes
from rtdecode.decode.families.mindeye2.mindeye2_decoder import MindEye2
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.families.mindeye2.mindeye2_stages import Hidden, MindEye2Stages
from rtdecode.decode.pipeline import Embedded, Float32
from rtdecode.decode.score.adapter import Adapter
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack

_LACKING = {
    "blurry": "the pack has no blurry picture: import it with --blurry-autoencoder, of a model with a low-level branch",
    "refined": "the pack has no refinement, or another backend than torch runs it: import with --refiner, --captioner, "
    "--converter and --unclip, and set decode.backend to torch",
}


@dataclass(slots=True, kw_only=True, eq=False)
class Settled:
    """Clean image tokens, what the backbone said, the seed of all noise, and the picture once it is drawn."""

    tokens: Any
    hidden: Hidden
    seed: int
    drawn: Float32 | None = None


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
    finish : {"none", "blend", "refine"}
        What becomes of a picture; see `DecodeSettings`.

    Raises
    ------
    EngineError
        The pack lacks what `finish` asks for.
    """

    def __init__(
        self,
        mind: MindEye2,
        open_network: Callable[[EnginePack, MindEye2Stages], MindEye2Stages],
        *,
        seed: int = 0,
        finish: Literal["none", "blend", "refine"] = "none",
    ) -> None:
        wanted = {"none": "", "blend": "blurry", "refine": "refined"}[finish]
        if wanted in mind.absent:
            raise EngineError(f"decode.finish {finish!r}: {_LACKING[wanted]}")
        self._finish = finish
        self._mind = mind
        self._shared = mind.stages
        self._open_network = open_network
        self._seed = seed
        self._adapter: Adapter | None = None
        self.absent = tuple(name for name in mind.absent if name in ("caption", "picture"))
        hidden = mind.embed(np.zeros(mind.voxels, np.float32))
        settled = Settled(tokens=mind.clean(hidden, seed=seed), hidden=hidden, seed=seed)
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
        seed = self._seed_of(trial)
        return Settled(tokens=self._mind.clean(hidden, seed=seed), hidden=hidden, seed=seed)

    def caption(self, settled: Settled) -> str | None:
        """Sentence of clean tokens; None without the stages."""
        return self._mind.caption(settled.tokens)

    def picture(self, settled: Settled, trial: str) -> NDArray[np.uint8] | None:
        """Picture of clean tokens, finished as asked; see `Pipeline.picture`."""
        if self._finish == "none":
            return self._mind.image(settled.hidden, settled.tokens, seed=settled.seed)
        picture = self._drawn(settled)
        if picture is None:
            return None
        if self._finish == "refine":
            refined = self._mind.refine(picture, self._mind.caption(settled.tokens) or "", seed=settled.seed)
            picture = picture if refined is None else refined
        blurry = self._mind.blurry(settled.hidden)
        return in_bytes(picture if blurry is None else self._mind.blend(picture, blurry))

    def preview(self, settled: Settled) -> NDArray[np.uint8] | None:
        """Return the picture before it is finished; None where nothing more becomes of it."""
        picture = None if self._finish == "none" else self._drawn(settled)
        return None if picture is None else in_bytes(picture)

    def _drawn(self, settled: Settled) -> Float32 | None:
        if settled.drawn is None:
            settled.drawn = self._mind.picture(settled.hidden, settled.tokens, seed=settled.seed)
        return settled.drawn

    def _seed_of(self, trial: str) -> int:
        return (self._seed << 32) | zlib.crc32(trial.encode())
