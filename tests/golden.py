"""Golden numbers by layout: any file of a kind counts, whatever its dims and seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

FORWARD = 1e-5
LOOP = 1e-4
LOSS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """One golden: its description, its tensors, and the state dict among them (keys as published)."""

    path: Path
    info: dict[str, Any]
    tensors: dict[str, NDArray[Any]]

    @property
    def dims(self) -> dict[str, Any]:
        dims: dict[str, Any] = self.info["dims"]
        return dims

    def state(self) -> dict[str, NDArray[Any]]:
        stored = {name[3:]: value for name, value in self.tensors.items() if name.startswith("sd.")}
        return stored or _filled(self.info)

    def weights(self) -> Golden:
        """The golden that this one takes its weights from."""
        name = said(r"([\w-]*prior_forward[\w-]*)", self.info.get("weights", self.info["ref"]))
        return read(self.path.with_name(f"{name}.json"))


def read(path: Path) -> Golden:
    return Golden(path=path, info=json.loads(path.read_text()), tensors=load_file(path.with_suffix(".safetensors")))


def goldens(shared: Path, kind: str) -> Iterator[Golden]:
    """Every golden whose file name holds `kind`.

    Yields
    ------
    Golden
        At least one: a kind without a file fails the test.
    """
    paths = sorted(path for path in (shared / "golden").glob("*.json") if kind in path.stem)
    assert paths, f"no golden named *{kind}*.json in {shared / 'golden'}"
    for path in paths:
        yield read(path)


def numbered(golden: Golden, pattern: str) -> list[tuple[str, int]]:
    """Tensors whose names hold a number of their own: names that match, and the number.

    Parameters
    ----------
    golden : Golden
    pattern : str
        Regular expression of the whole name, with the number as its group.

    Returns
    -------
    list of tuple
        At least one: a golden without such a tensor fails the test.
    """
    found = [(name, int(match.group(1))) for name in golden.tensors if (match := re.fullmatch(pattern, name))]
    assert found, f"{golden.path}: no tensor named {pattern}"
    return found


def said(pattern: str, text: str) -> str:
    """What a description says: the group of a regular expression that it must match."""
    found = re.search(pattern, text)
    assert found is not None, f"expected {pattern} in {text!r}"
    return found.group(1)


def _filled(info: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Weights that a golden describes instead of holding: see `fill` in its description."""
    state = {}
    for k, (key, shape) in enumerate(sorted(info["keys"].items())):
        z = np.random.RandomState(info["seed"] + k).standard_normal(shape)
        if key.endswith("rotary_emb.freqs"):
            z = 1.0 / 10000.0 ** (np.arange(0, 2 * len(z), 2) / (2 * len(z)))
        elif len(shape) >= 2:
            z = z / np.sqrt(np.prod(shape[1:]))
        else:
            z = 1 + 0.1 * z if key.endswith("weight") else 0.1 * z
        state[key] = np.asarray(z, dtype=np.float32)
    return state


def close(golden: Golden, name: str, got: Any, tolerance: float) -> None:
    """Fail unless `got` is the golden's tensor `name` within an absolute tolerance."""
    got = got.detach().numpy() if hasattr(got, "detach") else np.asarray(got)
    np.testing.assert_allclose(
        got, golden.tensors[name], rtol=0, atol=tolerance, err_msg=f"{golden.path.name}: {name}", strict=False
    )
