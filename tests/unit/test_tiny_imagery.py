"""The tiny imagery family: its contract, what its heads predict, and the pack that it is drawn by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines.tiny
from engines.tiny.imagery_pack import seal_imagery_pack
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates
from rtdecode.decode.families.tiny_imagery import FAMILY
from rtdecode.decode.loading import load_candidates
from rtdecode.decode.runtime.backends import choose
from rtdecode.decode.score.adapter import Adapter
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import open_pack
from rtdecode.packs.description import write_description
from rtdecode.settings import DecodeSettings
from rtdecode.simulate import world
from rtdecode.testing import check_family
from tests.decode_small import tiny_pack, tiny_stages


def test_the_shipped_pack_is_sealed_for_the_shipped_tiny_pack(tmp_path: Path) -> None:
    pack = open_pack("tiny-imagery")
    assert seal_imagery_pack(tmp_path / "again") == pack.identity
    assert pack.description.generator_identity == tiny_pack().identity  # type: ignore[attr-defined]


def test_the_family_keeps_the_contract() -> None:
    check_family(FAMILY, open_pack(str(engines.tiny.imagery_pack_path())))


def test_heads_predict_the_kind_and_what_a_picture_is_more_than_its_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for i in range(6):
        Image.fromarray(world.render(world.sample_scene(rng))[0]).save(tmp_path / f"p{i}.png")
    stages = tiny_stages()
    whole, heads = embed_candidates(stages, tmp_path), load_candidates(open_pack("tiny-imagery"), tmp_path)
    assert heads.names == whole.names
    semantic = whole.tokens.reshape(len(whole.tokens), -1)[:, stages.groups[0]]
    centres = stages.prototypes.reshape(len(stages.prototypes), -1)[:, stages.groups[0]]
    nearest = np.square(semantic[:, None] - centres).sum(2).argmin(1)
    kind, own = (heads.tokens[:, 0, group] for group in heads.groups)
    np.testing.assert_array_equal(kind, centres[nearest])
    np.testing.assert_allclose(kind + own, semantic, atol=1e-6)
    kinds, none = (heads.prototypes[:, 0, group] for group in heads.groups)
    np.testing.assert_array_equal(kinds, centres)
    assert not none.any()


def test_both_heads_together_are_the_tokens_that_are_drawn() -> None:
    rng = np.random.default_rng(5)
    pack, stages = open_pack("tiny-imagery"), tiny_stages()
    n = stages.groups[0].stop - stages.groups[0].start
    basis = np.zeros((5, 2 * n), np.float32)
    basis[:2, :n], basis[2:, n:] = rng.standard_normal((2, n)), 0.3 * rng.standard_normal((3, n))
    adapter = Adapter(
        voxels=np.arange(4), mean=np.zeros(4, np.float32), scale=np.ones(4, np.float32),
        weights=rng.standard_normal((4, 5)).astype(np.float32), intercept=rng.standard_normal(5).astype(np.float32),
        basis=basis, token_mean=rng.standard_normal(2 * n).astype(np.float32), r2=np.full(5, 0.4, np.float32),
        group_r2=np.array([0.4, 0.4], np.float32),
    )  # fmt: skip
    pipeline = FAMILY.pipeline(pack, DecodeSettings(), choose("auto", pack), seed=0)
    pipeline.take(adapter)
    beta = rng.standard_normal(4).astype(np.float32)
    predicted = (beta @ adapter.weights + adapter.intercept) @ basis + adapter.token_mean
    tokens = pipeline.embed(beta).tokens.ravel()
    np.testing.assert_allclose(tokens[stages.groups[0]], predicted[:n] + predicted[n:], rtol=1e-3, atol=1e-3)
    average = stages.prototypes.mean(0).ravel()
    np.testing.assert_allclose(tokens[stages.groups[1]], average[stages.groups[1]], rtol=1e-3, atol=1e-3)
    with pytest.raises(BundleError, match=r"expected .* values, semantic tokens of a kind and of one of it"):
        pipeline.take(replace(adapter, basis=basis[:, 1:]))


def test_another_generator_than_it_was_sealed_for_is_refused(tmp_path: Path) -> None:
    import msgspec

    seal_imagery_pack(tmp_path / "pack")
    pack = open_pack(str(tmp_path / "pack"))
    other = msgspec.structs.replace(pack.description, generator_identity="0" * 64)
    write_description(tmp_path, other)
    wrong = type(pack)(folder=tmp_path, identity="x", description=other)
    with pytest.raises(EngineError, match="expected pack tiny 000000000000, got"):
        FAMILY.candidates(wrong, None, threads=1)
