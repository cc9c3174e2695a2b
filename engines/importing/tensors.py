"""Writes safetensors files one tensor at a time: the header comes first, so shapes are needed but no values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdecode.errors import CheckpointError

_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], parts: Iterable[Tensor], *, dtype: torch.dtype
) -> None:
    """Write a safetensors file from a stream.

    Parameters
    ----------
    path : Path
    shapes : mapping of str to tuple of int
        Of every tensor, in the order of `parts`.
    parts : iterable of Tensor
        The values of all tensors in turn, in pieces of any size; a piece belongs to one tensor.
    dtype : torch.dtype
        Of the file; pieces are converted one by one.

    Raises
    ------
    CheckpointError
        A number is none, or becomes none in `dtype`; its tensor is named.
    ValueError
        The pieces are not the tensors that the shapes describe.
    """
    header: dict[str, dict[str, Any]] = {}
    size = torch.empty(0, dtype=dtype).element_size()
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * size
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    written = 0
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for part in parts:
            values = part.detach().to(dtype)
            if not torch.isfinite(values).all():
                raise CheckpointError(_not_finite(path.stem, _name_at(header, written), part, dtype))
            data = values.contiguous().flatten().view(torch.uint8).numpy().data
            stream.write(data)
            written += data.nbytes
    if written != at:
        raise ValueError(f"{path}: the shapes describe {at} bytes, the pieces hold {written}")


def _name_at(header: Mapping[str, Mapping[str, Any]], byte: int) -> str:
    places = ((name, said["data_offsets"]) for name, said in header.items())
    return next((name for name, (begin, end) in places if begin <= byte < end), "beyond the last tensor")


def _not_finite(stage: str, name: str, part: Tensor, dtype: torch.dtype) -> str:
    if not torch.isfinite(part).all():
        return f"{stage}: {name}: expected numbers, got NaN or inf"
    largest = float(part.abs().max())
    return (
        f"{stage}: {name}: holds {largest:g}, and {str(dtype).removeprefix('torch.')} ends at "
        f"{torch.finfo(dtype).max:g}: take float32 or bfloat16"
    )


def in_order(state: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], Iterator[Tensor]]:
    """Shapes and values of a state dict for `write_tensors`."""
    return {key: tuple(value.shape) for key, value in state.items()}, iter(state.values())
