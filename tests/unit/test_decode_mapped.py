"""Mapped tensors against safetensors' own reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rtdecode.decode.score.mapped import fill_tensors, map_tensor

RNG = np.random.default_rng(0)
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@given(shapes=st.dictionaries(st.sampled_from("abc"), st.tuples(SHAPES, st.sampled_from([np.float16, np.float32]))))
def test_what_is_filled_is_what_safetensors_reads(
    shapes: dict[str, tuple[tuple[int, ...], type]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("mapped") / "made" / "tensors.safetensors"
    values = {name: RNG.standard_normal(shape).astype(dtype) for name, (shape, dtype) in shapes.items()}
    with fill_tensors(path, shapes, {"names": "[1, 2]"}) as arrays:
        for name, array in arrays.items():
            for i, row in enumerate(values[name]):
                array[i] = row
        assert not path.exists()
    found = load_file(path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_array_equal(map_tensor(path, name), value)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"names": "[1, 2]"}


def test_what_safetensors_writes_is_mapped(tmp_path: Path) -> None:
    values = {"b": RNG.standard_normal((3, 5)).astype(np.float16), "a": RNG.standard_normal(7).astype(np.float32)}
    save_file(values, tmp_path / "t.safetensors", metadata={"x": "y"})
    for name, value in values.items():
        mapped = map_tensor(tmp_path / "t.safetensors", name)
        assert not mapped.flags.writeable
        np.testing.assert_array_equal(mapped, value)


def test_a_file_that_was_not_filled_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), fill_tensors(tmp_path / "t", {"a": ((2,), np.float32)}, {}):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
