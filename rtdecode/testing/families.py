"""What every `Family` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.family import Family, family_of
from rtdecode.decode.pipeline import Embedded, LeavesOut, Pipeline, VolumeContext, VolumePredictor
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PackDescription
from rtdecode.records import RegisteredVolume, Stamp
from rtdecode.settings import DecodeSettings
from rtdecode.testing.refusals import refused

_VOXELS = 20
_PARTS = {"caption", "picture"}
_ROUNDED = 2
"""Of 255: what is left out is subtracted, and sums are rounded."""


def check_family(family: Family, pack: EnginePack, stimuli: Path | None = None) -> None:
    """Check a family that sessions can run.

    Parameters
    ----------
    family : Family
    pack : EnginePack
        One of its packs.
    stimuli : Path or None
        Folder of stimuli, where the family needs one.

    Raises
    ------
    AssertionError
    """
    assert issubclass(family.description, PackDescription), "description: expected a kind of PackDescription"
    assert isinstance(pack.description, family.description), "the pack was not read by this family's description"
    assert family_of(pack) is family, f"kind {pack.description.kind} is another family's"
    settings = DecodeSettings(stimuli=stimuli)
    candidates = family.candidates(pack, stimuli, threads=1)
    _check_candidates(candidates)
    pipeline = family.pipeline(pack, settings, choose("auto", pack), seed=3)
    assert set(pipeline.absent) <= _PARTS, f"absent: expected some of {sorted(_PARTS)}, got {pipeline.absent}"
    with refused("a beta before there is a participant", EngineError, "no participant is loaded"):
        pipeline.embed(np.zeros(_VOXELS, np.float32))
    adapter = example_adapter(candidates)
    pipeline.take(adapter)
    beta = np.random.default_rng(1).standard_normal(_VOXELS).astype(np.float32)
    first, second = (_decoded(pipeline, beta, candidates, "r1t1") for _ in range(2))
    assert first == second, "the same beta of the same trial gave other bytes"
    again = family.pipeline(pack, settings, choose("auto", pack), seed=3)
    again.take(adapter)
    assert _decoded(again, beta, candidates, "r1t1") == first, "another process would give other bytes"
    if isinstance(pipeline, LeavesOut):
        _check_left_out(pipeline, beta, candidates.categories[0])
    if isinstance(pipeline, VolumePredictor) and isinstance(again, VolumePredictor):
        _check_predictor(pipeline, again)


def example_adapter(candidates: Candidates, *, voxels: int = _VOXELS, seed: int = 0) -> Adapter:
    """Make a participant who was never fitted: random weights onto the candidates' own components."""
    rng = np.random.default_rng(seed)
    flat = candidates.tokens.reshape(len(candidates.tokens), -1).astype(np.float64)
    mean = flat.mean(0)
    _, values, rows = np.linalg.svd(flat - mean, full_matrices=False)
    k = max(1, int(np.sum(values > values[0] * 1e-3)))
    basis = rows[:k] * (values[:k] / np.sqrt(len(flat)))[:, None]
    return Adapter(
        voxels=np.arange(voxels, dtype=np.int64),
        mean=np.zeros(voxels, np.float32),
        scale=np.ones(voxels, np.float32),
        weights=(rng.standard_normal((voxels, k)) / np.sqrt(voxels)).astype(np.float32),
        intercept=np.zeros(k, np.float32),
        basis=basis.astype(np.float32),
        token_mean=mean.astype(np.float32),
        r2=np.full(k, 0.5, np.float32),
        group_r2=np.full(len(candidates.groups), 0.5, np.float32),
    )


def _check_predictor(pipeline: VolumePredictor, again: VolumePredictor) -> None:
    """Predict of a short run forwards, and with another pipeline backwards: nothing may be kept between volumes."""
    window = pipeline.window
    assert window >= 1, f"window: expected at least 1, got {window}"
    volumes = [_volume(index) for index in range(window + 2)]
    places = range(len(volumes))
    contexts = [VolumeContext(earlier=volumes[max(0, place - window + 1) : place]) for place in places]
    forwards = {place: pipeline.predict(volumes[place], contexts[place]).values for place in places}
    backwards = {place: again.predict(volumes[place], contexts[place]).values for place in reversed(places)}
    for place in places:
        assert repr(forwards[place]) == repr(backwards[place]), "a prediction depends on more than its volumes"


def _volume(index: int) -> RegisteredVolume:
    rng = np.random.default_rng(index)
    return RegisteredVolume(
        stamp=Stamp(session="check", run=1, volume=index, received_s=0.0, received_mono_s=0.0),
        masked=rng.uniform(500, 900, _VOXELS).astype(np.float32),
        matrix=np.eye(4),
        motion=np.zeros(6),
        fd_mm=0.0,
        dvars=0.0,
        tsnr=float("nan"),
        fit=1.0,
        t_r_s=1.5,
    )


def _check_candidates(candidates: Candidates) -> None:
    n, tokens = len(candidates.names), candidates.tokens
    assert n >= 2, f"candidates: expected at least two, got {n}"
    assert len(set(candidates.names)) == n, "candidates: expected different names"
    assert tokens.shape[0] == n, f"tokens: expected shape ({n}, t, d), got {tokens.shape}"
    assert tokens.ndim == 3, f"tokens: expected shape ({n}, t, d), got {tokens.shape}"
    assert np.isfinite(tokens).all(), "tokens: expected numbers, got NaN or inf"
    c = len(candidates.categories)
    assert candidates.prototypes.shape == (c, *tokens.shape[1:]), f"prototypes: got shape {candidates.prototypes.shape}"
    assert candidates.category.shape == (n,), f"category: expected shape ({n},), got {candidates.category.shape}"
    assert set(candidates.category.tolist()) <= set(range(c)), f"category: expected places among {c}"
    width = tokens.shape[1] * tokens.shape[2]
    covered = sum(group.stop - group.start for group in candidates.groups)
    assert covered == width, f"groups: expected to cover {width} values, got {covered}"
    named = len(candidates.group_names)
    assert named in (0, len(candidates.groups)), f"group_names: expected {len(candidates.groups)} or none, got {named}"


def _check_left_out(pipeline: Any, beta: NDArray[np.float32], category: str) -> None:
    """Check that nothing changes where nothing is left out, and that what is has no part in picture and caption."""

    def drawn(embedded: Embedded) -> tuple[str | None, NDArray[np.int16]]:
        settled = pipeline.settle(embedded, category, "r1t1")
        picture = pipeline.picture(settled, "r1t1")
        return pipeline.caption(settled), np.zeros(1, np.int16) if picture is None else picture.astype(np.int16)

    one, other = pipeline.embed(beta), pipeline.embed(-beta)
    every = np.ones(len(one.components), np.bool_)
    (caption, picture), (again, same) = drawn(one), drawn(pipeline.without(one, ~every))
    assert again == caption, "the caption changes where nothing is left out"
    assert np.array_equal(same, picture), "the picture changes where nothing is left out"
    nothing = pipeline.without(one, every)
    assert np.array_equal(nothing.tokens, one.tokens), "what clients are sent depends on what is left out"
    (caption, picture), (again, same) = drawn(nothing), drawn(pipeline.without(other, every))
    assert again == caption, "the caption depends on what is left out"
    assert np.abs(same - picture).max() <= _ROUNDED, "the picture depends on what is left out"


def _decoded(
    pipeline: Pipeline, beta: NDArray[np.float32], candidates: Candidates, trial: str
) -> tuple[bytes, bytes, str | None, bytes | None]:
    embedded = pipeline.embed(beta)
    assert embedded.components.ndim == 1, f"components: expected shape (k,), got {embedded.components.shape}"
    assert embedded.tokens.ndim == 2, f"tokens: expected shape (t, d), got {embedded.tokens.shape}"
    assert np.isfinite(embedded.tokens).all(), "tokens: expected numbers, got NaN or inf"
    settled = pipeline.settle(embedded, candidates.categories[0], trial)
    caption, picture = pipeline.caption(settled), pipeline.picture(settled, trial)
    assert (caption is None) == ("caption" in pipeline.absent), f"caption: {caption!r}, absent: {pipeline.absent}"
    assert (picture is None) == ("picture" in pipeline.absent), f"a picture is there; absent: {pipeline.absent}"
    if picture is not None:
        assert picture.dtype == np.uint8, f"picture: expected uint8, got {picture.dtype}"
        assert picture.ndim == 3, f"picture: expected shape (h, w, 3), got {picture.shape}"
        assert picture.shape[2] == 3, f"picture: expected shape (h, w, 3), got {picture.shape}"
    made = None if picture is None else picture.tobytes()
    return embedded.components.tobytes(), embedded.tokens.tobytes(), caption, made
