"""The seam to a family of decoders, and how one is found: by the `kind` of a pack, among installed entry points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.pipeline import Pipeline
from rtdecode.decode.runtime.backends import Backend
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PackDescription
from rtdecode.packs.installed import installed_family
from rtdecode.settings import DecodeSettings

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedder:
    """A loaded embedder of pictures.

    Attributes
    ----------
    run : callable
        Pictures (n, 3, h, w) in 0..1 to tokens (n, t, d), float32.
    picture_px : tuple of int or None
        Height and width that it takes; None where it resizes by itself.
    """

    run: Callable[[Float32], Float32]
    picture_px: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedRecord:
    """What recorded betas gave.

    Attributes
    ----------
    picture : ndarray of shape (h, w, 3), uint8
    caption : str
        Empty where the pack writes none.
    tokens : ndarray of shape (m,), float32, or None
        For retrieval, in the order of the embedder's.
    """

    picture: NDArray[np.uint8]
    caption: str
    tokens: Float32 | None


RecordDecoder = Callable[[Float32, int], DecodedRecord]
"""Betas (repeats, voxels) of one stimulus, standardised as the pack's networks want them, and a seed."""


class Family(Protocol):
    """All that a session needs of one kind of pack.

    Settings that not every family follows are refused unless it says so, by an attribute that is true: `counts_steps`
    (``decode.prior_steps``, ``unclip_steps``), `guides` (``unclip_guidance``), `finishes` (``best_of``, ``finish``)
    and `offloads` (``weights_gb``).

    Attributes
    ----------
    description : type of PackDescription
        What ``pack.toml`` of its packs may say.
    """

    description: type[PackDescription]

    def candidates(self, pack: EnginePack, stimuli: Path | None, *, threads: int) -> Candidates:
        """Load what a trial may have shown, without the networks that decode.

        Parameters
        ----------
        pack : EnginePack
        stimuli : Path or None
            Folder of pictures named by stimulus.
        threads : int
            CPU threads.

        Raises
        ------
        EngineError, BundleError
            The pack or the stimuli cannot be used.
        """
        ...

    def pipeline(self, pack: EnginePack, settings: DecodeSettings, backend: Backend, *, seed: int) -> Pipeline:
        """Load the networks that decode, and warm them up.

        Parameters
        ----------
        pack : EnginePack
        settings : DecodeSettings
            Threads and numbers of steps.
        backend : Backend
            What runs the networks.
        seed : int
            Of the session: fixes, with the trial, the noise that a picture starts from.

        Raises
        ------
        EngineError, BundleError
            The pack cannot be used in a session.
        """
        ...

    def embedder(self, pack: EnginePack, *, threads: int) -> Embedder:
        """Load what embeds pictures.

        Raises
        ------
        EngineError
            The pack has none, or what runs it is not installed.
        """
        ...


def family_of(pack: EnginePack) -> Family:
    """Find the family of a pack.

    Raises
    ------
    EngineError
        No installed family is of its kind.
    """
    family: Family = installed_family(pack.description.kind, source=f"pack {pack.name}: kind")
    return family


def record_decoder(pack: EnginePack, *, threads: int = 1) -> RecordDecoder:
    """Load what decodes recorded betas with the networks of the pack alone, without a calibration.

    Raises
    ------
    EngineError
        Packs of its kind, or this one, decode nothing without a participant's calibration, or draw no picture.
    """
    load = getattr(family_of(pack), "record_decoder", None)
    if load is None:
        raise EngineError(
            f"pack {pack.name}: expected one that holds a participant's networks, as mindeye1 and mirage-imagery may, "
            f"got kind {pack.description.kind}, which decodes by a session's calibration alone"
        )
    found: RecordDecoder = load(pack, threads=threads)
    return found
