"""The ``pack.toml`` of MindEye1 packs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from rtdecode.decode.families.latent_map import MapsLatents
from rtdecode.packs.description import Count
from rtdecode.typed import Table

FIRST_LAYER = "lin0.0"
"""Of the brain network, which reads the voxels."""


class GeneratorTable(Table, frozen=True, kw_only=True):
    """How pictures are drawn; the defaults are the published ones of Versatile Diffusion.

    Attributes
    ----------
    kind : {"versatile-diffusion", "image-variations"}
    steps : int
        UniPC steps of the whole path.
    strength : float
        Share of it that is run where there is a blurry picture to begin from.
    guidance : float
        1 is none; a student that was distilled has its teacher's within it.
    samples : int
        Pictures a trial, of which the one is kept whose tokens are most like the brain's.
    batch : int
        Samples that are drawn at once.
    """

    kind: Literal["versatile-diffusion", "image-variations"]
    steps: Count = 20
    strength: Annotated[float, Meta(gt=0, le=1)] = 0.85
    guidance: float = 3.5
    samples: Count = 16
    batch: Count = 8


class MindEye1Description(MapsLatents, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``.

    Attributes
    ----------
    generator : GeneratorTable or None
        None where the pack draws no pictures.
    scaling : str
        File of ``mean`` and ``scale`` of the betas that the brain network was trained on; empty without.
    """

    family = "mindeye1"

    generator: GeneratorTable | None = None
    scaling: str = ""

    def files(self) -> Iterator[tuple[str, str]]:
        """See `PackDescription.files`."""
        yield from super().files()
        if self.scaling:
            yield "scaling", self.scaling
