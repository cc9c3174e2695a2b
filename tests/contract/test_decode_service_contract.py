"""What every decode service must do: in this process, and in one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from rtdecode.decode.service import DecodeService, LocalService
from rtdecode.decode.worker import WorkerService
from rtdecode.decoded import Caption, Embedding, Reconstruction
from rtdecode.errors import BundleError, EngineError
from rtdecode.settings import DecodeSettings
from tests.decode_small import category_update, tiny_decoder, tiny_pack, write_category_bundle
from tests.unit.test_decoding import registered


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_category_bundle(folder)
    return folder


@pytest.fixture(scope="module", params=["local", "worker"])
def service(request: pytest.FixtureRequest) -> Iterator[DecodeService]:
    made: DecodeService = LocalService(tiny_decoder()) if request.param == "local" else WorkerService(DecodeSettings())
    yield made
    made.close()


def test_without_a_participant_nothing_is_decoded() -> None:
    with pytest.raises(EngineError, match="no participant"):
        list(LocalService(tiny_decoder()).decode(category_update(0)))


def test_a_beta_gives_embedding_picture_and_caption_in_this_order(service: DecodeService, bundle: Path) -> None:
    service.load(bundle)
    parts = list(service.decode(category_update(1)))
    assert [type(part) for part, _ in parts] == [Embedding, Reconstruction, Caption]
    assert all(milliseconds >= 0 for _, milliseconds in parts)
    embedding, picture, caption = (part for part, _ in parts)
    assert isinstance(embedding, Embedding)
    assert isinstance(caption, Caption)
    assert isinstance(picture, Reconstruction)
    assert embedding.score.predicted == "house"
    assert "house" in caption.text
    assert picture.image.dtype == np.uint8
    assert picture.image.shape == (64, 64, 3)


def test_the_same_beta_gives_the_same_bytes(service: DecodeService, bundle: Path) -> None:
    service.load(bundle)
    outcomes = []
    for _ in range(2):
        embedding, picture, _ = (part for part, _ in service.decode(category_update(2)))
        assert isinstance(embedding, Embedding)
        assert isinstance(picture, Reconstruction)
        outcomes.append((embedding.tokens.tobytes(), picture.image.tobytes(), asdict(embedding.score)))
    assert outcomes[0] == outcomes[1]


def test_a_bundle_that_cannot_be_used_leaves_the_one_before(
    service: DecodeService, bundle: Path, tmp_path: Path
) -> None:
    service.load(bundle)
    before = next(service.decode(category_update(3)))[0]
    with pytest.raises(BundleError, match="found none"):
        service.load(tmp_path / "none")
    write_category_bundle(tmp_path / "foreign", pack=replace(tiny_pack(), identity="another"))
    with pytest.raises(BundleError, match="calibrate again"):
        service.load(tmp_path / "foreign")
    after = next(service.decode(category_update(3)))[0]
    assert isinstance(before, Embedding)
    assert isinstance(after, Embedding)
    assert asdict(before.score) == asdict(after.score)


def test_a_beta_of_another_mask_is_refused_and_the_next_is_decoded(service: DecodeService, bundle: Path) -> None:
    service.load(bundle)
    update = category_update(0)
    short = type(update)(
        **{name: getattr(update, name) for name in update.__slots__ if name != "beta"}, beta=update.beta[:10]
    )
    with pytest.raises(EngineError, match="calibrated mask"):
        list(service.decode(short))
    assert len(list(service.decode(update))) == 3


def test_an_abandoned_beta_does_not_disturb_the_next(service: DecodeService, bundle: Path) -> None:
    service.load(bundle)
    next(service.decode(category_update(4)))
    parts = list(service.decode(category_update(6)))
    assert isinstance(parts[0][0], Embedding)
    assert parts[0][0].score.predicted == "chair"


def test_loading_tells_the_identity(service: DecodeService, tmp_path: Path) -> None:
    identity = write_category_bundle(tmp_path / "own", noise=0.5)
    assert service.load(tmp_path / "own") == identity


def test_a_pack_that_predicts_nothing_of_volumes_says_so(service: DecodeService, bundle: Path) -> None:
    service.load(bundle)
    assert service.window == 0
    with pytest.raises(EngineError, match="expected a pack that predicts of volumes"):
        service.predict([registered(0)])
    assert len(list(service.decode(category_update(0)))) == 3
