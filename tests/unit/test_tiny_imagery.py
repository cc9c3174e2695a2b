"""The tiny imagery family: its contract, what its heads predict, and the pack that it is drawn by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engines.tiny
from engines.tiny.imagery_pack import seal_imagery_pack
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates
from rtdecode.decode.families.tiny_imagery import FAMILY
from rtdecode.decode.families.tiny_imagery.what_is_imagined import said
from rtdecode.decode.loading import load_candidates
from rtdecode.errors import EngineError
from rtdecode.packs import open_pack
from rtdecode.packs.description import write_description
from rtdecode.testing import check_family
from tests.decode_small import tiny_pack, tiny_stages


def test_the_shipped_pack_is_sealed_for_the_shipped_tiny_pack(tmp_path: Path) -> None:
    pack = open_pack("tiny-imagery")
    assert seal_imagery_pack(tmp_path / "again") == pack.identity
    assert pack.description.generator_identity == tiny_pack().identity  # type: ignore[attr-defined]


def test_the_family_keeps_the_contract() -> None:
    check_family(FAMILY, open_pack(str(engines.tiny.imagery_pack_path())))


def test_heads_predict_semantic_tokens_and_words() -> None:
    stages = tiny_stages()
    whole, heads = embed_candidates(stages, None), load_candidates(open_pack("tiny-imagery"), None)
    assert heads.names == whole.names
    image, text = (heads.tokens[:, 0, group] for group in heads.groups)
    np.testing.assert_array_equal(image, whole.tokens.reshape(len(whole.tokens), -1)[:, stages.groups[0]])
    words = said(stages, whole.tokens)
    assert set(np.unique(words)) == {0, 1}
    np.testing.assert_allclose(text.var(0).sum(), image.var(0).sum(), rtol=1e-4)
    assert (np.argsort(text, 1)[:, ::-1][:, :1] == words.argmax(1)[:, None]).shape == (len(words), 1)
    for row, name in enumerate(whole.names):
        spoken = [stages.vocabulary[i] for i in np.flatnonzero(words[row])]
        assert name in " ".join(spoken)


def test_another_generator_than_it_was_sealed_for_is_refused(tmp_path: Path) -> None:
    import msgspec

    seal_imagery_pack(tmp_path / "pack")
    pack = open_pack(str(tmp_path / "pack"))
    other = msgspec.structs.replace(pack.description, generator_identity="0" * 64)
    write_description(tmp_path, other)
    wrong = type(pack)(folder=tmp_path, identity="x", description=other)
    with pytest.raises(EngineError, match="expected pack tiny 000000000000, got"):
        FAMILY.candidates(wrong, None, threads=1)
