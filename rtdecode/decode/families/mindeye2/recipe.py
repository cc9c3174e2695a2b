"""How a picture is made, and all that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.decode.families.mindeye2.mindeye2_stages import Float32, Hidden
from rtdecode.errors import EngineError

NEGATIVE_PROMPT = (
    "painting, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, deformed, ugly, blurry, bad "
    "anatomy, bad proportions, extra limbs, cloned face, skinny, glitchy, double torso, extra arms, extra hands, "
    "mangled fingers, missing lips, ugly face, distorted face, extra legs, anime"
)

STUDENT_STEPS = 2
"""Evaluations a picture of a distilled network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a picture is made; the defaults are the published ones.

    Attributes
    ----------
    prior_steps : int
        Of DDIM, or all of the prior's noise levels for DDPM; n steps of DDIM are n - 1 evaluations. Of a distilled
        prior: evaluations.
    prior_sampler : str
        See `prior_sampler`: ``published``, ``consistency`` for a student that was distilled, or ``few``.
    prior_guidance : float
        1 is none.
    unclip_steps : int
    unclip_sampler : {"euler", "consistency"}
        Along the path as published, or with fresh noise at each level, for a student that was distilled.
    unclip_guidance : float
    unclip_times : tuple of int
        The network's timesteps, falling, one a step; empty: sgm's spacing.
    small_autoencoder : bool
        Whether pictures are decoded by the small autoencoder instead of the published one.
    refine_steps, refine_timepoint : int
        Steps of the whole path, and sigmas of it that are kept.
    refine_guidance : float
    negative_prompt : str
    blend : tuple of float
        Shares of the picture and of the blurry one. 3 to 1 as in the published code; the paper says 4 to 1.
    best_of : int
        Pictures made, of which the one whose tokens are most like the brain's is kept; above 1 needs the embedder.
    """

    prior_steps: int = 20
    prior_sampler: str = "published"
    prior_guidance: float = 1.0
    unclip_steps: int = 38
    unclip_sampler: Literal["euler", "consistency"] = "euler"
    unclip_guidance: float = 5.0
    unclip_times: tuple[int, ...] = ()
    small_autoencoder: bool = False
    refine_steps: int = 25
    refine_timepoint: int = 13
    refine_guidance: float = 5.0
    negative_prompt: str = NEGATIVE_PROMPT
    blend: tuple[float, float] = (3.0, 1.0)
    best_of: int = 1

    def __post_init__(self) -> None:
        if self.unclip_times and len(self.unclip_times) != self.unclip_steps:
            raise EngineError(
                f"steps of the unCLIP: expected {len(self.unclip_times)}, which the LoRA in it was made for, got "
                f"{self.unclip_steps}: leave decode.unclip_steps out"
            )


def recipe_of(description: MindEye2Description) -> Recipe:
    """Return the published recipe but, for what a pack says was distilled, two steps without guidance.

    An unCLIP with a few-step LoRA in it is sampled as that was made to be. A small autoencoder is used where the pack
    has one.

    Parameters
    ----------
    description : MindEye2Description
    """
    distilled = description.distilled
    recipe = Recipe(small_autoencoder="small_autoencoder" in description.stages)
    if (lora := description.unclip_lora) is not None:
        recipe = replace(
            recipe,
            unclip_steps=lora.steps,
            unclip_sampler=lora.sampler,
            unclip_guidance=lora.guidance,
            unclip_times=tuple(lora.times),
        )
    if "prior" in distilled:
        recipe = replace(recipe, prior_steps=STUDENT_STEPS, prior_sampler="consistency")
    if "unclip" in distilled:
        recipe = replace(
            recipe, unclip_steps=STUDENT_STEPS, unclip_sampler="consistency", unclip_guidance=1.0, unclip_times=()
        )
    if description.prior_sampler:
        recipe = replace(recipe, prior_sampler=description.prior_sampler)
    return recipe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MindEye2Decoded:
    """All that one beta, or several repeats, gave; None where a stage is absent.

    Attributes
    ----------
    hidden : Hidden
    tokens : ndarray of shape (tokens, dim), float32
        Clean image tokens.
    caption : str or None
    picture, blurry, refined, blended : ndarray of shape (3, h, w), float32, or None
        In 0..1: the unCLIP's picture, the low-level branch's, the picture after refinement, and the best of the
        former mixed with the blurry one at 256 px.
    absent : tuple of str
        What could not be made because the pack lacks a stage.
    """

    hidden: Hidden
    tokens: Float32
    caption: str | None
    picture: Float32 | None
    blurry: Float32 | None
    refined: Float32 | None
    blended: Float32 | None
    absent: tuple[str, ...]
