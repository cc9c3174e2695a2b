"""What a MindEye2 decoder needs of a pack, whatever runs the networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.mindeye2.unclip_step import Unclip
from rtdecode.decode.sampling.schedule import CosineSchedule

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hidden:
    """What a backbone says; arrays of the stages.

    Attributes
    ----------
    tokens : array of shape (b, tokens, dim)
        Condition of the prior.
    retrieval : array of shape (b, tokens, dim)
    latent : array of shape (b, 4, 28, 28) or None
        Blurry picture, None without a low-level branch.
    """

    tokens: Any
    retrieval: Any
    latent: Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refiner:
    """Stages of the refinement: an image-to-image pass of SDXL with the caption as prompt.

    Attributes
    ----------
    encode : callable
        Pictures in -1..1 and noise of the latent's shape to a sampled latent.
    prompt : callable
        Text to a condition.
    noise : callable
        Scaled latent, timestep, wanted and unwanted condition and guidance to noise.
    picture : callable
        Latent to pictures in -1..1.
    factor : int
        Pixels per value of the latent, each way.
    """

    encode: Callable[[Any, Any], Any]
    prompt: Callable[[str], Any]
    noise: Callable[[Any, int, Any, Any, float], Any]
    picture: Callable[[Any], Any]
    factor: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MindEye2Stages:
    """Stages of a pack; an optional one is None where the pack lacks it.

    Attributes
    ----------
    ridge : tuple of ndarray
        Weights (hidden, voxels) and bias (hidden,) of a participant.
    schedule : CosineSchedule
        Of the prior.
    backbone : callable
        Ridge output (b, hidden) to `Hidden`.
    prior : callable
        Noisy tokens, noise level, condition and guidance to clean tokens.
    caption : callable or None
        Clean tokens to sentences.
    unclip : Unclip or None
    latent_side : int
        Height and width of the latent.
    picture, small_picture, blurry : callable or None
        Latent to pictures in -1..1: by the unCLIP's autoencoder, by a small one in its place, and of the low-level
        branch.
    embed : callable or None
        Pictures in 0..1 to tokens.
    refiner : Refiner or None
    normal, image, fallbacks, whole, array, host : callable
        As of `Runner`.
    """

    ridge: tuple[Float32, Float32]
    schedule: CosineSchedule
    backbone: Callable[[Any], Hidden]
    prior: Callable[[Any, int, Any, float], Any]
    caption: Callable[[Any], list[str]] | None
    unclip: Unclip | None
    latent_side: int
    picture: Callable[[Any], Any] | None
    small_picture: Callable[[Any], Any] | None
    blurry: Callable[[Any], Any] | None
    embed: Callable[[Any], Any] | None
    refiner: Refiner | None
    normal: Callable[[tuple[int, int], Sequence[int]], Any]
    image: Callable[[Any, float, float], NDArray[np.uint8]]
    fallbacks: Callable[[], tuple[str, ...]]
    whole: Callable[[str, Callable[..., Any]], Callable[..., Any]]
    array: Callable[[NDArray[Any]], Any]
    host: Callable[[Any], NDArray[Any]]
