"""The diffusion prior of MindEye1 and MindEye2, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtdecode.decode.runtime.runner import Runner
from rtdecode.decode.sampling.edm import guide


def guided_prior(runner: Runner) -> Callable[[Any, int, Any, float], Any]:
    """Open the prior: noisy tokens, noise level, condition and guidance to clean tokens."""
    compute = runner.open("prior")

    def run(x: Any, t: int, condition: Any, guidance: float) -> Any:
        if guidance == 1:
            keep = runner.level(1, x)
            return compute({"x": x, "t": runner.level(t, x), "condition": condition, "keep": keep})["tokens"]
        both = runner.join([x, x])
        keep = runner.join([runner.level(1, x), runner.level(0, x)])
        given = {"x": both, "t": runner.level(t, both), "condition": runner.join([condition] * 2), "keep": keep}
        tokens = compute(given)["tokens"]
        return guide(tokens[: len(x)], tokens[len(x) :], guidance)

    return run
