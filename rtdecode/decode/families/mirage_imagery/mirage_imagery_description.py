"""The ``pack.toml`` of packs of MIRAGE's imagery decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, field

from rtdecode.decode.families.distilled_table import DistilledTable
from rtdecode.decode.families.published_pack import PublishedDescription
from rtdecode.packs.description import Count
from rtdecode.typed import Table

Head = Literal["image", "text", "prompt", "low_level", "retrieval"]
"""What a ridge predicts: CLIP-L's image embedding, bigG's text, GIT's tokens, VDVAE's latents, CLIP-L's tokens."""
HEADS: tuple[Head, ...] = ("image", "text", "prompt", "low_level", "retrieval")
Share = Annotated[float, Meta(ge=0, le=1)]


class CascadeTable(Table, frozen=True, kw_only=True, omit_defaults=True):
    """How Stable Cascade draws; the defaults are the published ones.

    Attributes
    ----------
    sampler_c : {"ddpm", "consistency"}
        Of stage C: as published, or with fresh noise at each level, for a student that was distilled.
    steps_c : int
        Steps of stage C's whole path; of a student, evaluations from wherever it starts.
    strength : float
        Share of it that is run, from the low-level picture.
    text_share : float
        Weight of the text; the image has the rest.
    guidance_c, guidance_b : float
        1 is none, and no rescaling.
    shift_c, shift_b : float
        Of the schedules.
    rescale : float
        Share of predictions whose spread is brought back after guidance.
    steps_b : int
        Steps of stage B.
    samples : int
        Pictures a trial, of which the one is kept whose CLIP tokens are most like the retrieval head's.
    batch : int
        Samples that are drawn at once. The rescaling looks at all of a batch together, as published.
    sharpness, contrast : float
        Of the low-level picture, as Pillow counts them.
    low_level_px : int
        That it is enlarged to.
    """

    sampler_c: Literal["ddpm", "consistency"] = "ddpm"
    steps_c: Count = 20
    strength: Share = 0.7
    text_share: Share = 0.5
    guidance_c: float = 4.0
    guidance_b: float = 1.1
    shift_c: float = 2.0
    shift_b: float = 1.0
    rescale: Share = 0.7
    steps_b: Count = 10
    samples: Count = 16
    batch: Count = 8
    sharpness: float = 20.0
    contrast: float = 1.5
    low_level_px: Count = 768


class MirageImageryDescription(PublishedDescription, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``.

    Attributes
    ----------
    shapes : dict of str to list of int
        Of what each head predicts: tokens and channels, or values.
    generator : CascadeTable
        How pictures are drawn.
    empty_caption : str
        File with ``text`` (n, width) and ``pooled`` (width,) of the empty caption; empty where no pictures are drawn.
    distilled : DistilledTable or None
        How stage C came from its teacher; None where it is the published one.
    statistics : str
        File with means and deviations of the published heads' targets and predictions; empty where there are none.
    """

    family = "mirage-imagery"

    shapes: dict[Head, list[Count]] = field(default_factory=dict)
    generator: CascadeTable = field(default_factory=CascadeTable)
    empty_caption: str = ""
    distilled: DistilledTable | None = None
    statistics: str = ""

    def files(self) -> Iterator[tuple[str, str]]:
        """See `PackDescription.files`."""
        yield from super().files()
        for place in ("empty_caption", "statistics"):
            if name := getattr(self, place):
                yield place, name
