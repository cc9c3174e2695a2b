"""The ``pack.toml`` of packs of the tiny family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta, field

from rtdecode.packs.description import Count, PackDescription
from rtdecode.typed import Table


class PictureTable(Table, frozen=True, kw_only=True):
    """Pictures that the embedder takes and the autoencoder gives.

    Attributes
    ----------
    height, width : int
        Pixels.
    colour_space : str
        ``"sRGB"``.
    range : (float, float)
        Least and largest value.
    """

    height: Count
    width: Count
    colour_space: str
    range: tuple[float, float]


class CaptionTable(Table, frozen=True, kw_only=True):
    """Words of captions.

    Attributes
    ----------
    vocabulary : list of str
        Words by number.
    pad, end : int
        Numbers of the words that are not said.
    """

    vocabulary: list[str]
    pad: int
    end: int


class PriorSampling(Table, frozen=True, kw_only=True):
    """How the diffusion prior is called.

    Attributes
    ----------
    schedule : str
        ``"cosine"``.
    levels, steps : int
        Noise levels, and evaluations a picture.
    sampler : str
        ``few``, ``published``, or the name of one that another package brings.
    """

    schedule: str
    levels: Count
    steps: Count
    sampler: str = "few"


class UnclipSampling(Table, frozen=True, kw_only=True):
    """How the unCLIP is called.

    Attributes
    ----------
    schedule : str
        ``"sgm"``.
    levels, steps : int
        Noise levels, and evaluations a picture.
    guidance_baked_in : float
        What the student learned from its teacher.
    temperature : float
        Deviation of the noise that latents start from, in units of what the schedule asks.
    latent : tuple of int
        Channels, height and width.
    """

    schedule: str
    levels: Count
    steps: Count
    guidance_baked_in: float
    temperature: Annotated[float, Meta(gt=0)]
    latent: tuple[Count, Count, Count]


class SamplingTable(Table, frozen=True, kw_only=True):
    """How a pack's diffusion networks are called."""

    prior: PriorSampling
    unclip: UnclipSampling


class TinyDescription(PackDescription, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``.

    Attributes
    ----------
    categories : list of str
        What a score decides between.
    prototypes : str
        File of the mean tokens of each category.
    picture : PictureTable
        Pictures that it takes and gives.
    caption : CaptionTable
        Words of captions.
    sampling : SamplingTable
        How its diffusion networks are called.
    expected_parity : float
        Largest difference of a stage from the network it was exported from.
    report : dict
        Held-out figures of the training.
    """

    family = "tiny"

    categories: list[str]
    prototypes: str
    picture: PictureTable
    caption: CaptionTable
    sampling: SamplingTable
    expected_parity: Annotated[float, Meta(gt=0)]
    report: dict[str, Any] = field(default_factory=dict)

    def files(self) -> Iterator[tuple[str, str]]:
        """See `PackDescription.files`."""
        yield from super().files()
        yield "prototypes", self.prototypes
