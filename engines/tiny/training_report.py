"""Measure what a tiny pack makes of its tokens (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from engines.tiny import layout
from engines.tiny.conditions import through_noise
from engines.tiny.data import Sample, draw_sample
from engines.tiny.picture_figures import POOL, identified
from engines.tiny.train import Trained, embed_all
from rtdecode.simulate.world import CATEGORIES

R2_LEVELS = (0.5, 0.3, 0.15)
N_HELD_OUT = 1024


def measure(trained: Trained, seed: int) -> dict[str, Any]:
    """Figures on held-out pictures.

    Returns
    -------
    dict
        ``psnr_db`` (true tokens; scrambled pictures left out), ``caption_exact``, ``caption_retrieval`` (picture to
        caption among 64), ``judge`` (category accuracy on truth, true tokens and each R2) and, for each R2,
        ``committed`` (category chosen by the prior), ``token_retrieval`` (noisy tokens to true ones among 64) and
        ``psnr_db``.
    """
    held_out = draw_sample(N_HELD_OUT, seed + 9_000_000)
    tokens = embed_all(trained.embedder, held_out.pictures)
    truth = torch.from_numpy(held_out.pictures).float() / 255
    category = torch.from_numpy(held_out.codes[:, : len(CATEGORIES)]).argmax(1)
    ordinary = category != CATEGORIES.index("scrambled")
    decoded = _decode(trained, tokens)
    figures: dict[str, Any] = {
        "n_held_out": N_HELD_OUT,
        "psnr_db": _psnr(decoded[ordinary], truth[ordinary]),
        "caption_exact": _caption_exact(trained, tokens, held_out),
        "caption_retrieval": _caption_retrieval(trained, tokens, held_out),
        "semantic_variance_share": _variance_share(trained),
        "category_variance_share": _category_share(trained),
        "judge": {"truth": _judged(trained, truth, category), "true_tokens": _judged(trained, decoded, category)},
    }
    for level in R2_LEVELS:
        noisy, clean, chosen = through_noise(trained.prior, trained.noise, tokens, level, seed)
        pictures = _decode(trained, clean)
        name = f"r2_{level:g}"
        figures["judge"][name] = _judged(trained, pictures, category)
        figures[name] = {
            "committed": float((chosen == category).float().mean()),
            "token_retrieval": float(identified(*(x.flatten(1) - trained.noise.mean for x in (noisy, tokens))).mean()),
            "psnr_db": _psnr(pictures[ordinary], truth[ordinary]),
            "caption_exact": _caption_exact(trained, clean, held_out),
        }
    return figures


def sheet(rows: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """Draw pictures (n, 64, 64, 3) in labelled rows."""
    margin, gap, side = 90, 3, 64
    count = len(next(iter(rows.values())))
    sheet = Image.new("RGB", (margin + count * (side + gap), len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, pictures) in enumerate(rows.items()):
        draw.text((4, i * (side + gap) + 26), label, fill="black")
        for j, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (margin + j * (side + gap), i * (side + gap)))
    return sheet


def to_uint8(pictures: Tensor) -> NDArray[np.uint8]:
    """Round pictures (n, 3, h, w) in 0..1 to (n, h, w, 3)."""
    rounded: NDArray[np.uint8] = (pictures.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return rounded


def _decode(trained: Trained, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([trained.decoder(part) for part in tokens.split(128)]).clone()


def _psnr(decoded: Tensor, truth: Tensor) -> float:
    error = (decoded - truth).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def _judged(trained: Trained, pictures: Tensor, category: Tensor) -> float:
    with torch.inference_mode():
        named = torch.cat([trained.judge(part).argmax(1) for part in pictures.split(128)])
    return float((named == category).float().mean())


def _caption_exact(trained: Trained, tokens: Tensor, held_out: Sample) -> float:
    with torch.inference_mode():
        ids = trained.captioner(tokens)[0].numpy()
    return float(np.mean([_until_end(a) == _until_end(b) for a, b in zip(ids, held_out.captions, strict=True)]))


def _until_end(ids: Sequence[int] | NDArray[np.int64]) -> list[int]:
    words = [int(i) for i in ids]
    return words[: words.index(layout.END)] if layout.END in words else words


def _caption_retrieval(trained: Trained, tokens: Tensor, held_out: Sample) -> float:
    captions = torch.from_numpy(held_out.captions)
    with torch.inference_mode():
        ours = functional.normalize(trained.projection(tokens))
        theirs = functional.normalize(trained.text(captions).float())
    hits = []
    for ids, a, b in zip(captions.split(POOL), ours.split(POOL), theirs.split(POOL), strict=True):
        best = (a @ b.T).argmax(1)
        hits.append((ids[best] == ids).all(1).float())
    return float(torch.cat(hits).mean())


def _variance_share(trained: Trained) -> float:
    semantic, spatial = (float(d.square().sum()) for d in trained.noise.deviations)
    return semantic / (semantic + spatial)


def _category_share(trained: Trained) -> float:
    scale = layout.BLOCK_SCALES[0]
    category = float(scale**2 * trained.prior.code_std[: layout.BLOCKS[0]].square().sum())
    return category / float(sum(d.square().sum() for d in trained.noise.deviations))
