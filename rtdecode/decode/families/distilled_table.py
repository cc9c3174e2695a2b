"""What packs tell of a stage that is a student of few steps."""

from __future__ import annotations

from rtdecode.packs.description import Count
from rtdecode.typed import Table


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
