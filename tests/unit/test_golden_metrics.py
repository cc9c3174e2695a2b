"""The measures against the published code's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rtdecode.decode.resample import bilinear
from rtdecode.evaluate.metrics import (
    brain_retrieval,
    candidate_draws,
    correlation_distance,
    image_retrieval,
    pixcorr,
    ssim,
    two_way,
    two_way_counts,
)
from tests.golden import LOSS, close, goldens, numbered, said


def test_golden_metrics_of_pixels(shared: Path) -> None:
    for golden in goldens(shared, "g_metrics"):
        true, made = golden.tensors["images"], golden.tensors["recons"]
        each = pixcorr(true, made)
        close(golden, "pixcorr_each", each, LOSS)
        # The published mean takes norms over half a million pixels in float32, and is off by that much from its parts.
        close(golden, "pixcorr_utils", each.mean(), 1e-5)
        close(golden, "ssim_each", ssim(true, made), LOSS)


def test_golden_metrics_of_features(shared: Path) -> None:
    for golden in goldens(shared, "g_metrics"):
        true, made = golden.tensors["feat_real"], golden.tensors["feat_pred"]
        close(golden, "twoway", two_way(true, made), LOSS)
        np.testing.assert_array_equal(two_way_counts(true, made), golden.tensors["twoway_counts"])
        close(golden, "corr_distance_each", correlation_distance(true, made), LOSS)


def test_golden_metrics_of_retrieval_are_named_the_right_way_round(shared: Path) -> None:
    for golden in goldens(shared, "g_metrics"):
        brain, images = golden.tensors["emb_brain"], golden.tensors["emb_image"]
        # Rows of the published "fwd" are images, columns brains: it finds the brain of an image.
        unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, brain)]
        close(golden, "fwd_sim", unit[0] @ unit[1].T, LOSS)
        for name, k in numbered(golden, r"fwd_top(\d+)"):
            close(golden, name, brain_retrieval(brain, images, k=k).mean(), LOSS)
        for name, k in numbered(golden, r"bwd_top(\d+)"):
            close(golden, name, image_retrieval(brain, images, k=k).mean(), LOSS)
        draws = golden.tensors["draws"]
        seed = int(said(r"numpy (\d+)", golden.info["seed"]))
        close(golden, "draws", candidate_draws(len(brain), draws.shape[1], len(draws), seed=seed), 0)
        close(golden, "fwd_each", [brain_retrieval(brain[rows], images[rows]).mean() for rows in draws], LOSS)
        close(golden, "bwd_each", [image_retrieval(brain[rows], images[rows]).mean() for rows in draws], LOSS)


def test_retrieval_both_ways_against_counting() -> None:
    # Brain 1 is a copy of brain 0: image 0 finds either, image 1 neither, and both brains find image 0.
    images = np.eye(3)
    brain = np.array([[1.0, 0.1, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]])
    assert image_retrieval(brain, images).mean() == pytest.approx(2 / 3)
    assert brain_retrieval(brain, images).tolist() == [1 / 2, 1 / 2, 1]


def test_bilinear_is_torchs() -> None:
    pictures = np.random.default_rng(0).random((2, 3, 20, 33), dtype=np.float32)
    for px in (7, 33, 50):
        want = torch.nn.functional.interpolate(torch.from_numpy(pictures), (px, px), mode="bilinear")
        np.testing.assert_allclose(bilinear(pictures, px), want.numpy(), rtol=0, atol=5e-6)
