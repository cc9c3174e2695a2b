"""The sampler of the unCLIP and the refinement against sgm's own numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler

from rtdecode.decode.families.mindeye2.unclip_step import size_features
from rtdecode.decode.sampling.edm import (
    euler,
    euler_times,
    guide,
    network_alphas_cumprod,
    network_sigmas,
    refinement_times,
    unclip_start,
)
from tests.golden import FORWARD, LOOP, Golden, close, goldens, numbered, said


def toy(tokens: Any, vector: Any) -> Callable[[Any, int], Any]:
    """The toy network that the goldens were made with."""
    shift = (tokens.mean((1, 2)) + 0.01 * vector.mean(1))[:, None, None, None]
    return lambda x, t: torch.tanh(0.3 * x + 0.001 * t + shift)


def guided(golden: Golden, names: tuple[str, str, str, str], scale: float) -> Callable[[Any, int], Any]:
    tokens, vector, uc_tokens, uc_vector = (torch.from_numpy(golden.tensors[name]) for name in names)
    conditional, unconditional = toy(tokens, vector), toy(uc_tokens, uc_vector)
    return lambda x, t: guide(conditional(x, t), unconditional(x, t), scale)


def on_numpy(predict: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    return lambda x, t: predict(torch.from_numpy(x), t).numpy()


def test_golden_edm_tables(shared: Path) -> None:
    for golden in goldens(shared, "sgm_sampler"):
        for name, steps in numbered(golden, r"sigmas(\d+)"):
            times, sigmas = euler_times(steps)
            close(golden, name, sigmas, FORWARD)
            np.testing.assert_array_equal(times, golden.tensors[f"timesteps{steps}"])
        for name, count in numbered(golden, r"denoiser_sigmas_first(\d+)"):
            close(golden, name, network_sigmas()[:count], FORWARD)
        for name, count in numbered(golden, r"denoiser_sigmas_last(\d+)"):
            close(golden, name, network_sigmas()[-count:], FORWARD)
        for name in ("vector_suffix", "vector_suffix_sdxl_base"):
            # Sizes and places in brackets, as "original(768,768) crop(0,0)".
            groups = re.findall(r"[\[(]([\d,]+)[\])]", golden.info["tensors"][name]["what"])
            features = size_features([int(number) for number in ",".join(groups).split(",")])
            close(golden, name, np.broadcast_to(features, golden.tensors[name].shape), FORWARD)


def test_the_signal_left_is_that_of_the_scheduler_of_diffusers() -> None:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    np.testing.assert_allclose(network_alphas_cumprod(), scheduler.alphas_cumprod.numpy(), rtol=1e-4)


def test_golden_edm_unclip_loop(shared: Path) -> None:
    for golden in goldens(shared, "sgm_sampler"):
        z, noise, offset = (torch.from_numpy(golden.tensors[name]) for name in ("z", "noise", "offset"))
        scale = float(said(r"VanillaCFG\(([\d.]+)\)", golden.info["ref"]))
        predict = guided(golden, ("tokens", "vector_suffix", "uc_tokens", "vector_suffix"), scale)
        times, sigmas = euler_times(golden.info["steps"])
        start = unclip_start(z, noise, offset, sigmas[0])
        close(golden, "init", start / float(np.sqrt(1 + sigmas[0] ** 2)), FORWARD)
        close(golden, "out", euler(predict, start, times, sigmas), LOOP)
        alike = euler(on_numpy(predict), start.numpy(), times, sigmas)
        assert alike.dtype == np.float32
        close(golden, "out", alike, LOOP)


def test_golden_edm_refinement_loop(shared: Path) -> None:
    for golden in goldens(shared, "sgm_refine"):
        timepoint = golden.info["img2img_timepoint"]
        steps = int(said(r"\((\d+) steps\)", golden.info["note"]))
        times, sigmas = refinement_times(steps, timepoint)
        assert times.tolist() == golden.info["network_timesteps"]
        close(golden, "sigmas_used", sigmas, FORWARD)
        z, noise = (torch.from_numpy(golden.tensors[name]) for name in ("z_image", "noise"))
        start = z + noise * float(sigmas[0])
        close(golden, "x_start", start, FORWARD)
        predict = guided(golden, ("cond", "vector", "uc", "vector_uc"), golden.info["cfg"])
        close(golden, "out", euler(predict, start, times, sigmas), LOOP)
