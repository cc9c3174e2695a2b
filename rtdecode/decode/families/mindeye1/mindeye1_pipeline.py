"""MindEye1 in a session: by the network that the participant's bundle carries, or else by the ridge of the visit."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.arrays import Float32, in_bytes
from rtdecode.decode.families.mindeye1.mindeye1_decoder import MindEye1, OwnNetwork
from rtdecode.decode.families.mindeye1.mindeye1_description import MindEye1Description
from rtdecode.decode.pipeline import Embedded
from rtdecode.decode.score.adapter import Adapter
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settled:
    """Clean tokens (samples, t, d), those that the pick compares with (t, d), and the blurry picture."""

    tokens: Float32
    retrieval: Float32
    blurry: Float32 | None


class MindEye1Pipeline:
    """A `Pipeline` over a MindEye1 pack.

    A participant whose network was trained on earlier visits is decoded by it: brain network, prior and low-level
    network, as published. Without one, the ridge of the visit predicts CLIP's tokens, which the generator takes as they
    are: the pack's prior was trained on what its own brain network says, and has never seen such. There is no blurry
    picture then, and pictures are begun from noise. Scores and evidence are of the visit's calibration in either case.

    Parameters
    ----------
    mind : MindEye1
    open_network : callable
        Opens the networks of a participant's own pack.
    seed : int
        Of the session: fixes, with the trial, all noise.
    """

    def __init__(self, mind: MindEye1, open_network: Callable[[EnginePack], OwnNetwork], *, seed: int = 0) -> None:
        self._mind = mind
        self._open_network = open_network
        self._seed = seed
        self._adapter: Adapter | None = None
        self._carried = False
        self.absent = ("caption",) if mind.draws else ("caption", "picture")
        said, retrieval = mind.embed(np.zeros(mind.voxels, np.float32))
        blurry = mind.blurry(np.zeros(mind.voxels, np.float32))
        mind.picture(mind.clean(said, seed=seed), retrieval, blurry, seed=seed)
        self._shape = retrieval.shape

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What runs otherwise than it was to; see `TellsFallbacks`."""
        return self._mind.fallbacks

    def take_network(self, network: EnginePack | None, adapter: Adapter) -> None:
        """Take the network that a bundle carries; see `TakesNetwork`."""
        if network is None:
            self._carried = False
            return
        try:
            network.described(MindEye1Description)
            own = self._open_network(network)
        except EngineError as error:
            raise BundleError(str(error)) from None
        if own.voxels != len(adapter.voxels):
            raise BundleError(
                f"network {network.name}: takes {own.voxels} voxels, the bundle's adapter has {len(adapter.voxels)}: "
                "put it into the bundle with rtdecode engines carry"
            )
        self._mind.own = own
        self._carried = True

    def take(self, adapter: Adapter) -> None:
        """Take a participant; see `Pipeline.take`."""
        width = self._shape[0] * self._shape[1]
        if adapter.basis.shape[1] != width:
            raise BundleError(
                f"adapter: expected {width} values of {self._shape[0]} x {self._shape[1]} tokens, got "
                f"{adapter.basis.shape[1]}: was it calibrated for another pack?"
            )
        self._adapter = adapter

    def embed(self, beta: Float32) -> Embedded:
        """Embed a beta; the tokens are of the kind that retrieval compares with pictures'."""
        adapter = self._adapter
        if adapter is None:
            raise EngineError("no participant is loaded: calibrate, or set decode.bundle")
        components = adapter.predict(beta)
        if self._carried:
            standard = np.asarray((beta - adapter.mean) / adapter.scale, np.float32)
            said, retrieval = self._mind.embed(standard)
            state: tuple[Any, Float32, Float32 | None] = said, retrieval, self._mind.blurry(standard)
        else:
            retrieval = np.asarray(components @ adapter.basis + adapter.token_mean, np.float32).reshape(self._shape)
            state = None, retrieval, None
        return Embedded(components=components, tokens=retrieval.astype(np.float16), state=state)

    @property
    def final_width(self) -> int:
        """Values of CLIP's final embedding; see `HasFinal`."""
        return int(self._shape[1])

    def final(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """CLIP's final embedding: of the normed and projected tokens it is the first."""
        return np.asarray(tokens[0])

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Settled:
        """Sample clean tokens with the participant's prior, or take those that the ridge predicted."""
        said, retrieval, blurry = embedded.state
        if said is None:
            tokens = np.repeat(retrieval[None], self._mind.samples, axis=0)
        else:
            tokens = self._mind.clean(said, seed=self._seed_of(trial))
        return Settled(tokens=tokens, retrieval=retrieval, blurry=blurry)

    def caption(self, settled: Settled) -> None:
        """There is none."""

    def preview(self, settled: Settled) -> NDArray[np.uint8] | None:
        """Return the blurry picture; None without the participant's own network."""
        return None if settled.blurry is None else in_bytes(settled.blurry)

    def picture(self, settled: Settled, trial: str) -> NDArray[np.uint8] | None:
        """Picture by the generator; see `Pipeline.picture`."""
        seed = self._seed_of(trial)
        return self._mind.picture(settled.tokens, settled.retrieval, settled.blurry, seed=seed)[0]

    def _seed_of(self, trial: str) -> int:
        return (self._seed << 32) | zlib.crc32(trial.encode())
