"""Packs of the tiny kind: ONNX stages that commit to one thing before they draw it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.tiny.painter import Painter
from rtdecode.decode.families.tiny.sentence import sentence
from rtdecode.decode.families.tiny.tiny_stages import TinyStages, open_stage
from rtdecode.decode.pipeline import Embedded, Float32
from rtdecode.decode.runtime.engine import Engine
from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.content import group_of
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack

_COMMIT = np.float32(1e4)
"""Added to the logit of the category that the score chose, so that the picture shows that category."""

RETRIEVAL = "retrieval"
"""Stage of a participant's own network: ``tokens`` of the adapter and their ``r2`` to those that clients are sent."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawable:
    """What a picture is settled from.

    Attributes
    ----------
    tokens : ndarray of shape (1, t, d), float32
    r2 : ndarray of shape (groups,), float32
        How reliable each token group is.
    """

    tokens: Float32
    r2: Float32


class TinyPipeline:
    """A `Pipeline` over the stages of a tiny pack, whose participants may have a network of their own.

    Parameters
    ----------
    stages : TinyStages
    seed : int
        Of the session: fixes, with the trial, the noise that a picture starts from.
    prior_steps, unclip_steps : int or None
        Evaluations a picture; None takes what the pack says.

    Raises
    ------
    EngineError
        A number of steps is out of range.
    """

    absent: tuple[str, ...] = ()

    def __init__(
        self, stages: TinyStages, *, seed: int = 0, prior_steps: int | None = None, unclip_steps: int | None = None
    ) -> None:
        self._stages = stages
        self._painter = Painter(stages, seed=seed, prior_steps=prior_steps, unclip_steps=unclip_steps)
        self._adapter: Adapter | None = None
        self._retrieval: Engine | None = None
        tokens = self._commit(stages.prototypes[:1], np.full(len(stages.groups), 0.5), stages.categories[0])
        self.caption(tokens)
        self.picture(tokens, "")

    def take_network(self, network: EnginePack | None, adapter: Adapter) -> None:
        """Take what ``rtdecode engines finetune`` has made; see `TakesNetwork`."""
        try:
            self._retrieval = None if network is None else open_stage(network, RETRIEVAL, threads=1)
        except EngineError as error:
            raise BundleError(str(error)) from None

    def take(self, adapter: Adapter) -> None:
        """Take a participant; see `Pipeline.take`."""
        self._adapter = adapter

    def embed(self, beta: Float32) -> Embedded:
        """Embed a beta; the tokens are shrunk toward the mean in proportion to their reliability.

        A participant's own network moves those that clients are sent toward what it expects of the picture; the picture
        is drawn of the adapter's.
        """
        adapter = self._loaded()
        out = self._stages.adapter.run(
            {
                "beta": beta[None],
                "mean": adapter.mean,
                "scale": adapter.scale,
                "weights": adapter.weights,
                "intercept": adapter.intercept,
                "basis": adapter.basis,
                "token_mean": adapter.token_mean,
            }
        )
        tokens = out["tokens"]
        sent = tokens
        if self._retrieval is not None:
            sent = self._retrieval.run({"tokens": tokens, "r2": _reliability(adapter.group_r2)})["retrieval"]
        drawable = Drawable(tokens=tokens, r2=adapter.group_r2)
        return Embedded(components=out["components"][0], tokens=sent[0], state=drawable)

    def without(self, embedded: Embedded, components: NDArray[np.bool_]) -> Embedded:
        """Leave components out, and rely no more on a token group that has lost all of them; see `LeavesOut`."""
        adapter, whole = self._loaded(), embedded.state
        tokens = whole.tokens - ((embedded.components * components) @ adapter.basis).reshape(whole.tokens.shape)
        group = group_of(adapter.basis, self._stages.groups)
        r2 = whole.r2.copy()
        r2[np.setdiff1d(group[components], group[~components])] = 0
        return replace(embedded, state=Drawable(tokens=tokens, r2=r2))

    def settle(self, embedded: Embedded, predicted: str, trial: str) -> Float32:
        """Commit to one thing of the predicted category: tokens (1, t, d)."""
        return self._commit(embedded.state.tokens, embedded.state.r2, predicted)

    def caption(self, settled: Float32) -> str:
        """Sentence of committed tokens."""
        words = self._stages.captioner.run({"tokens": settled})["words"][0]
        return sentence(words, self._stages.vocabulary, self._stages.end)

    def picture(self, settled: Float32, trial: str) -> NDArray[np.uint8]:
        """Picture of committed tokens; see `Pipeline.picture`."""
        return self._painter.paint(settled[0], trial)

    def _commit(self, tokens: Float32, r2: NDArray[np.floating], category: str) -> Float32:
        bias = np.zeros((1, len(self._stages.categories)), dtype=np.float32)
        bias[0, self._stages.categories.index(category)] = _COMMIT
        given = {"tokens": tokens, "r2": _reliability(r2), "category_bias": bias}
        return np.asarray(self._stages.commit.run(given)["tokens_clean"], dtype=np.float32)

    def _loaded(self) -> Adapter:
        if self._adapter is None:
            raise EngineError("no participant is loaded: calibrate, or set decode.bundle")
        return self._adapter


def _reliability(r2: NDArray[np.floating]) -> Float32:
    """R2 (1, groups) of both token groups."""
    return np.asarray(np.clip(r2, 0, 1)[None], dtype=np.float32)
