"""The ``pack.toml`` of MindEye2 packs."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from rtdecode.decode.families.distilled_table import DistilledTable
from rtdecode.decode.families.latent_map import MapsLatents
from rtdecode.decode.families.lora_table import LoraTable

Student = Literal["prior", "unclip"]
"""Stages that can be distilled."""


class UnclipLora(LoraTable, frozen=True, kw_only=True):
    """The few-step LoRA of SDXL that was fused into the unCLIP, and how it is sampled.

    Attributes
    ----------
    times : list of int
        The network's timesteps, falling.
    sampler : str
        ``euler``, or ``consistency``: with fresh noise at each level.
    guidance : float
        1 is none.
    """

    times: list[int]
    sampler: Literal["euler", "consistency"]
    guidance: float


class MindEye2Description(MapsLatents, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``.

    Attributes
    ----------
    distilled : dict of str to DistilledTable
        By stage: ``prior``, ``unclip``.
    unclip_lora : UnclipLora or None
        None where none was fused.
    prior_sampler : str
        What samples the prior; empty for the published one, or that of students where it is distilled.
    """

    family = "mindeye2"

    distilled: dict[Student, DistilledTable] = field(default_factory=dict)
    unclip_lora: UnclipLora | None = None
    prior_sampler: str = ""
