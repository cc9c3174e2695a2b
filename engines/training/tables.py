"""Rows of large safetensors files, read as they are needed (torch). Import this module inside functions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rtdecode.errors import TrainingError


class Table:
    """Tensors of one file that have a row for each item.

    Parameters
    ----------
    path : Path
        A safetensors file.
    columns : dict of str to int
        Names of tensors that it must have, and their number of axes.

    Raises
    ------
    TrainingError
        The file cannot be read, lacks a tensor, or its tensors have different numbers of rows.
    """

    def __init__(self, path: Path, columns: dict[str, int]) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            names = set(file.keys())
            shapes: dict[str, tuple[int, ...]] = {
                name: tuple(file.get_slice(name).get_shape()) for name in columns if name in names
            }
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path}: not a readable safetensors file: {error}") from None
        wrong = [name for name, axes in columns.items() if len(shapes.get(name, ())) != axes]
        if wrong:
            wanted = ", ".join(f"{name} of {axes} axes" for name, axes in columns.items())
            raise TrainingError(f"{path}: expected tensors {wanted}; wrong or missing: {', '.join(wrong)}")
        lengths = {shape[0] for shape in shapes.values()}
        if len(lengths) != 1 or not min(lengths):
            raise TrainingError(f"{path}: expected the same number of rows in every tensor, at least 1, got {shapes}")
        self._file = file
        self._length = int(lengths.pop())
        self._shapes = shapes

    def __len__(self) -> int:
        return self._length

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a row of a tensor."""
        return self._shapes[name][1:]

    def rows(self, name: str, at: Tensor) -> Tensor:
        """Rows (n, ...) of a tensor, float32 unless they are integers."""
        part = self._file.get_slice(name)
        taken = torch.cat([part[int(i) : int(i) + 1] for i in at])
        return taken.float() if taken.is_floating_point() else taken
