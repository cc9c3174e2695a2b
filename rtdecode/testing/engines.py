"""What every `Engine` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.runtime.engine import Engine
from rtdecode.errors import EngineError
from rtdecode.testing.refusals import refused


def check_engine(engine: Engine, values: Mapping[str, NDArray[Any]], *, rtol: float = 1e-4) -> None:
    """Check an engine.

    Parameters
    ----------
    engine : Engine
    values : mapping of str to ndarray
        Inputs with at least two rows each, as `Engine.run` takes them.
    rtol : float
        By how much a row may differ when it is computed alone, relative to the largest value.

    Raises
    ------
    AssertionError
    """
    assert set(values) == set(engine.inputs), f"inputs: expected {sorted(engine.inputs)}, got {sorted(values)}"
    kept = {name: value.copy() for name, value in values.items()}
    given = {name: value.copy() for name, value in values.items()}
    for value in given.values():
        value.flags.writeable = False
    found = engine.run(given)
    assert tuple(found) == engine.outputs, f"outputs: expected {engine.outputs}, got {tuple(found)}"
    for name, value in found.items():
        assert isinstance(value, np.ndarray), f"{name}: expected a numpy array, got {type(value).__name__}"
        assert value.dtype != np.float16, f"{name}: expected single precision, got half"
        assert np.isfinite(value).all(), f"{name}: expected numbers, got NaN or inf"
    for name, value in given.items():
        np.testing.assert_array_equal(value, kept[name], f"{name} was changed")
    again = engine.run(given)
    for name, value in found.items():
        assert value.tobytes() == again[name].tobytes(), f"{name}: the same inputs gave other bytes"
    _check_rows(engine, given, found, rtol)
    _check_refusals(engine, given)


def _check_rows(
    engine: Engine, given: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], rtol: float
) -> None:
    alone = engine.run({name: value[:1] for name, value in given.items()})
    for name, value in found.items():
        off = np.abs(alone[name].astype(np.float64) - value[:1]).max() / max(float(np.abs(value).max()), 1e-12)
        assert off <= rtol, f"{name}: a row that is computed alone differs by {off:.1e}"


def _check_refusals(engine: Engine, given: Mapping[str, NDArray[Any]]) -> None:
    first = next(iter(given))
    with refused("a missing input", EngineError, "expected inputs"):
        engine.run({name: value for name, value in given.items() if name != first})
    with refused("an unknown input", EngineError, "expected inputs"):
        engine.run({**given, f"{first}_": given[first]})
    with refused("an input of another number of axes", EngineError, engine.name):
        engine.run({**given, first: given[first][..., None]})
