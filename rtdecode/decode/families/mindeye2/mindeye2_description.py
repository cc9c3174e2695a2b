"""The ``pack.toml`` of MindEye2 packs."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from rtdecode.decode.families.latent_map import MapsLatents
from rtdecode.decode.families.lora_table import LoraTable
from rtdecode.packs.description import Count
from rtdecode.typed import Table

Student = Literal["prior", "unclip"]
"""Stages that can be distilled."""


class JudgedStudent(Table, frozen=True, kw_only=True):
    """A student beside its teacher, paired, on pictures that were held out from its training.

    Attributes
    ----------
    pictures : int
        Held out; one trial of each.
    decoded : bool
        Whether both were given tokens as decoded from betas; else true ones, for want of participants.
    teacher, student : float
        Two-way identification: share of the other pictures that are less like what was made than the one shown; .5 is
        chance.
    points_lost : float
        Percentage points of it that the student lost.
    interval : (float, float)
        95 % interval of the latter.
    """

    pictures: Count
    decoded: bool
    teacher: float
    student: float
    points_lost: float
    interval: tuple[float, float]


class DistilledTable(Table, frozen=True, kw_only=True, omit_defaults=True):
    """How a student came from its teacher.

    Attributes
    ----------
    teacher : str
        Identity of the teacher's pack.
    guidance_baked_in : float
        Scale of the teacher's guidance that the student has learned.
    steps, skip, seed : int
        Of the training.
    judged : JudgedStudent or None
        None in packs of before.
    """

    teacher: str
    guidance_baked_in: float
    steps: int
    skip: int
    seed: int
    judged: JudgedStudent | None = None


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
