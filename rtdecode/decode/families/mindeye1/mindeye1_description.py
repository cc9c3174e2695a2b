"""The ``pack.toml`` of MindEye1 packs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from rtdecode.decode.families.latent_map import MapsLatents
from rtdecode.decode.families.lora_table import LoraTable
from rtdecode.decode.sampling.students import StudentSampler
from rtdecode.packs.description import Count
from rtdecode.typed import Table

FIRST_LAYER = "lin0.0"
"""Of the brain network, which reads the voxels."""


class GeneratorTable(Table, frozen=True, kw_only=True):
    """How pictures are drawn; the defaults are the published ones of Versatile Diffusion.

    Attributes
    ----------
    kind : {"versatile-diffusion", "image-variations"}
        Which was imported: by all tokens over the length of the first, or by one as it is.
    steps : int
        Steps of the whole path, UniPC's where no LoRA asks for another sampler.
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


class GeneratorLora(LoraTable, frozen=True, kw_only=True):
    """The few-step LoRA of Stable Diffusion 1 that was fused into the generator, and how it is sampled.

    Attributes
    ----------
    sampler : str
        ``lcm``, ``tcd`` or ``ddim``: what its publisher samples it with. The first two take other numbers of steps too.
    """

    sampler: StudentSampler


class MindEye1Description(MapsLatents, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``.

    Attributes
    ----------
    generator : GeneratorTable or None
        None where the pack draws no pictures.
    generator_lora : GeneratorLora or None
        None where none was fused. With one, steps and guidance of `generator` are those of the LoRA.
    scaling : str
        File of ``mean`` and ``scale`` of the betas that the brain network was trained on; empty without.
    """

    family = "mindeye1"

    generator: GeneratorTable | None = None
    generator_lora: GeneratorLora | None = None
    scaling: str = ""

    def files(self) -> Iterator[tuple[str, str]]:
        """See `PackDescription.files`."""
        yield from super().files()
        if self.scaling:
            yield "scaling", self.scaling
