"""What makes tokens, captions and pictures of betas: one class for each kind of pack, behind one seam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.score.adapter import Adapter
from rtdecode.decoded import Prediction
from rtdecode.packs import EnginePack
from rtdecode.records import RegisteredVolume

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedded:
    """What the first stages say of a beta.

    Attributes
    ----------
    components : ndarray of shape (k,), float32
        As the participant's adapter predicts them.
    tokens : ndarray of shape (t, d)
        For clients and for retrieval.
    state : object
        What the pipeline needs to go on.
    """

    components: Float32
    tokens: NDArray[Any]
    state: Any


class Pipeline(Protocol):
    """Runs the networks of a pack; loaded and warm when made.

    It may be a `VolumePredictor` as well, `Previews`, `LeavesOut`, `TakesNetwork`, `HasFinal` and `TellsFallbacks`.
    """

    @property
    def absent(self) -> tuple[str, ...]:
        """What the pack has no stage for: ``"caption"`` or ``"picture"``."""
        ...

    def take(self, adapter: Adapter) -> None:
        """Take a participant; nothing is rebuilt.

        Raises
        ------
        BundleError
            The adapter belongs to other networks.
        """
        ...

    def embed(self, beta: Float32) -> Embedded:
        """Embed the values (s,) of the adapter's voxels, all finite."""
        ...

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Any:
        """Decide what picture and caption will be of, given the category that the score chose."""
        ...

    def caption(self, settled: Any) -> str | None:
        """Sentence of what was settled; None without the stages."""
        ...

    def picture(self, settled: Any, trial: str) -> NDArray[np.uint8] | None:
        """Picture (h, w, 3) of what was settled; the same and the same trial give the same bytes. None if absent."""
        ...


@runtime_checkable
class Previews(Protocol):
    """What a `Pipeline` offers besides that begins its pictures from a blurry one."""

    def preview(self, settled: Any) -> NDArray[np.uint8] | None:
        """Picture (h, w, 3) that the one of what was settled is begun from; None without the stages."""
        ...


@runtime_checkable
class LeavesOut(Protocol):
    """What a `Pipeline` offers besides that can draw and describe a part of what was embedded."""

    def without(self, embedded: Embedded, components: NDArray[np.bool_]) -> Embedded:
        """Return what is settled as if these components (k,) were those of the average picture.

        What clients are sent, components and tokens, stays.
        """
        ...


@runtime_checkable
class TakesNetwork(Protocol):
    """What a `Pipeline` offers besides whose participants may have a whole network of their own."""

    def take_network(self, network: EnginePack | None, adapter: Adapter) -> None:
        """Take the network that a bundle carries, before its adapter; None where it carries none.

        Raises
        ------
        BundleError
            It is of other networks, or of another mask.
        """
        ...


@runtime_checkable
class HasFinal(Protocol):
    """What a `Pipeline` offers besides whose tokens hold the final embedding that public pools are made of."""

    @property
    def final_width(self) -> int:
        """Values of that embedding."""
        ...

    def final(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """Take the final embedding (final_width,) out of the tokens (t, d) of an `Embedded`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VolumeContext:
    """What a predictor may look back at.

    Attributes
    ----------
    earlier : sequence of RegisteredVolume
        The volumes of the same run before this one, oldest first: at most ``window - 1``, fewer at the beginning of
        the run. A volume that is missing is left out: their indices tell.
    """

    earlier: Sequence[RegisteredVolume]


@runtime_checkable
class VolumePredictor(Protocol):
    """What a `Pipeline` offers besides to predict of every volume.

    It keeps nothing from one volume to the next: what it needs of earlier ones is in the context. So a worker that was
    replaced, and a session that was resumed, go on with the same bytes.
    """

    @property
    def window(self) -> int:
        """Number of volumes that it looks at, this one included; at least 1."""
        ...

    def predict(self, volume: RegisteredVolume, context: VolumeContext) -> Prediction:
        """Predict of a volume, for the participant that was taken.

        Parameters
        ----------
        volume : RegisteredVolume
            Values of the mask, percent signal change of regions and parcels, motion and quality.
        context : VolumeContext

        Raises
        ------
        EngineError
            Nothing can be predicted of it.
        """
        ...


@runtime_checkable
class TellsFallbacks(Protocol):
    """What a `Pipeline` offers besides where it may run otherwise than it was to, and so more slowly."""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What does, and why, in words; known once it is warm."""
        ...
