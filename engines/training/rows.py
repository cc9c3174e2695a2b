"""Rows of large safetensors files, read as they are needed (torch). Import this module inside functions only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engines.embed.file_columns import Columns


class FileRows(Columns):
    """Tensors of one file, read by torch; see `Columns`."""

    def __init__(self, path: Path, columns: dict[str, int]) -> None:
        super().__init__(path, columns, "pt")

    def rows(self, name: str, at: Tensor) -> Tensor:
        """Rows (n, ...) of a tensor, float32 unless they are integers."""
        part = self.part(name)
        taken = torch.cat([part[int(i) : int(i) + 1] for i in at])
        return taken.float() if taken.is_floating_point() else taken
