"""Batches of a sample of pictures (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engines.tiny.data import Sample


class Batch(NamedTuple):
    """Pictures in 0..1 and what is known of them: object masks, codes, captions, and their rows of the sample."""

    pictures: Tensor
    masks: Tensor
    codes: Tensor
    captions: Tensor
    rows: Tensor


def batches(sample: Sample, size: int) -> Callable[[torch.Generator], Batch]:
    """Draw batches of a sample."""

    def draw_batch(draw: torch.Generator) -> Batch:
        rows = torch.randint(len(sample), (size,), generator=draw)
        at = rows.numpy()
        pictures = torch.from_numpy(sample.pictures[at]).float() / 255
        return Batch(
            pictures=pictures.contiguous(memory_format=torch.channels_last),
            masks=torch.from_numpy(sample.masks[at]).float(),
            codes=torch.from_numpy(sample.codes[at]),
            captions=torch.from_numpy(sample.captions[at]),
            rows=rows,
        )

    return draw_batch
