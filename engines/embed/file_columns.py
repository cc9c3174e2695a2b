"""Tensors of a large safetensors file that have a row for each item, none of them read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from rtdecode.errors import TrainingError


class Columns:
    """Tensors of one file that have a row for each item.

    Parameters
    ----------
    path : Path
        A safetensors file.
    columns : dict of str to int
        Names of tensors that it must have, and their number of axes.
    framework : {"pt", "numpy"}
        What reads it: torch, or numpy, which has no bfloat16.

    Raises
    ------
    TrainingError
        The file cannot be read, lacks a tensor, or its tensors have different numbers of rows.
    """

    def __init__(self, path: Path, columns: dict[str, int], framework: Literal["pt", "numpy"]) -> None:
        try:
            file: Any = safe_open(path, framework=framework)
            names = set(file.keys())
            parts = {name: file.get_slice(name) for name in columns if name in names}
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path}: not a readable safetensors file: {error}") from None
        shapes: dict[str, tuple[int, ...]] = {name: tuple(part.get_shape()) for name, part in parts.items()}
        wrong = [name for name, axes in columns.items() if len(shapes.get(name, ())) != axes]
        if wrong:
            wanted = ", ".join(f"{name} of {axes} axes" for name, axes in columns.items())
            raise TrainingError(f"{path}: expected tensors {wanted}; wrong or missing: {', '.join(wrong)}")
        lengths = {shape[0] for shape in shapes.values()}
        if len(lengths) != 1 or not min(lengths):
            raise TrainingError(f"{path}: expected the same number of rows in every tensor, at least 1, got {shapes}")
        unread = [name for name, part in parts.items() if framework == "numpy" and part.get_dtype() == "BF16"]
        if unread:
            raise TrainingError(f"{path}: expected float16 or float32, got bfloat16 in {', '.join(unread)}")
        self.path = path
        self._parts = parts
        self._length = int(lengths.pop())
        self._shapes = shapes

    def __len__(self) -> int:
        return self._length

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a row of a tensor."""
        return self._shapes[name][1:]

    def part(self, name: str) -> Any:
        """Return a tensor that reads what it is sliced for, as an array of the framework."""
        return self._parts[name]

    def refer(self, name: str, other: Columns) -> Any:
        """Return a whole tensor (n,) of rows of another file, as an array of the framework.

        Raises
        ------
        TrainingError
            They are not whole numbers, or no rows of it.
        """
        rows = self.part(name)[:]
        low, high, whole = rows.min().item(), rows.max().item(), "int" in str(rows.dtype)
        if not whole or low < 0 or high >= len(other):
            raise TrainingError(
                f"{self.path}: {name}: expected rows of {other.path.name}, integers from 0 to {len(other) - 1}, got "
                f"{rows.dtype} from {low} to {high}"
            )
        return rows
