"""Tensors of a safetensors file that stay on the disk: mapped to be read, and mapped to be filled."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8


def map_tensor(path: Path, name: str) -> NDArray[Any]:
    """Map a tensor, float16 or float32, of a file that safetensors has opened before; nothing of it is read yet."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        said: dict[str, Any] = json.loads(stream.read(length))[name]
    offset = _LENGTH_BYTES + length + said["data_offsets"][0]
    mapped: NDArray[Any] = np.memmap(path, _DTYPES[said["dtype"]], "r", offset, tuple(said["shape"]))
    return mapped


@contextmanager
def fill_tensors(
    path: Path, tensors: Mapping[str, tuple[tuple[int, ...], type]], metadata: Mapping[str, str]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Make a file whose tensors are filled row by row; it is there once all is filled, and only then.

    Parameters
    ----------
    path : Path
    tensors : mapping of str to (shape, dtype)
        Float16 or float32.
    metadata : mapping of str to str

    Yields
    ------
    dict of str to ndarray
        Mapped, to be written to.

    Raises
    ------
    OSError
        The disk has no room for all of it.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    wide_first = sorted(tensors.items(), key=lambda item: -np.dtype(item[1][1]).itemsize)  # keeps values aligned
    end = 0
    for name, (shape, dtype) in wide_first:
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as stream:
            stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            stream.flush()
            os.posix_fallocate(stream.fileno(), 0, _LENGTH_BYTES + len(text) + end)  # a full disk is told here
        arrays = {
            name: np.memmap(draft, dtype, "r+", _LENGTH_BYTES + len(text) + header[name]["data_offsets"][0], shape)
            for name, (shape, dtype) in tensors.items()
        }
        yield {**arrays}
        for array in arrays.values():
            array.flush()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
