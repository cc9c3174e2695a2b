"""Running averages over repeats of a stimulus: what is averaged, and what is decoded of the mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from rtdecode.decode.decoder import Decoder
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.score.adapter import adapter_from
from rtdecode.decode.score.encoding import encoding_from
from rtdecode.decoded import Caption, Embedding, Reconstruction
from rtdecode.errors import EngineError, SettingsError
from rtdecode.packs import open_participant
from rtdecode.records import BetaUpdate
from rtdecode.session.repeats import Repeats
from rtdecode.settings import parse
from tests.decode_small import (
    category_beta,
    category_update,
    tiny_decoder,
    tiny_stages,
    write_category_bundle,
)


def update(values: list[float], stimulus: str | None, *, run: int = 1, final: bool = True) -> BetaUpdate:
    plain = category_update(0)
    event = replace(plain.event, stimulus=stimulus, run=run)
    return replace(plain, event=event, final=final, beta=np.array(values, np.float32))


def test_a_mean_is_of_the_final_betas_before_and_of_the_one_at_hand() -> None:
    nan = np.nan
    repeats = Repeats(True)
    shown = [
        (update([1, 2, nan, nan], "cat", final=False), None),
        (update([1, 2, 3, nan], "cat"), None),
        (update([9, 9, 9, 9], "dog"), None),
        (update([3, nan, 4, nan], "cat", final=False), 2),
        (update([3, 4, 5, nan], "cat", run=2), 2),
        (update([5, 5, 5, 5], None), None),
        (update([5, 5, 5, 5], None), None),
        (update([8, 0, 1, np.inf], "cat", run=3), 3),
    ]
    finals: dict[str, list[np.ndarray]] = {}
    for beta, n in shown:
        found = repeats.follow(beta)
        earlier = finals.get(beta.event.stimulus or "", [])
        if n is None:
            assert found is beta
        else:
            rows = np.stack([*earlier, beta.beta]).astype(float)
            naive = [np.mean(column[np.isfinite(column)]) if np.isfinite(column).any() else nan for column in rows.T]
            assert (found.shown, n) == (len(rows), len(rows))
            assert found.average is not None
            np.testing.assert_allclose(found.average, np.array(naive, np.float32), rtol=1e-6)
        np.testing.assert_array_equal(found.beta, beta.beta)  # the trial's own stays
        if beta.final and beta.event.stimulus:
            finals.setdefault(beta.event.stimulus, []).append(beta.beta)
    repeats.leave_out(2)
    again = repeats.follow(update([4, 4, 4, 4], "cat", run=3, final=False))
    assert again.shown == 3
    np.testing.assert_allclose(again.average, [13 / 3, 2, 8 / 3, 4], rtol=1e-6)


def test_betas_stay_as_they_are_where_no_means_are_wanted() -> None:
    repeats = Repeats(False)
    for _ in range(2):
        beta = update([1, 2], "cat")
        assert repeats.follow(beta) is beta


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_category_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(bundle: Path) -> Decoder:
    made = tiny_decoder()
    made.load(open_participant(bundle))
    return made


def parts_of(decoder: Decoder, beta: np.ndarray, truth: str, **mean: Any) -> dict[type, Any]:
    return {type(part): part for part in decoder.decode(beta, (None, truth), "r5t1", **mean)}


def test_the_picture_is_of_the_mean_and_the_evidence_of_the_trial(decoder: Decoder, bundle: Path) -> None:
    rng = np.random.default_rng(4)
    betas = np.stack([category_beta(3, 3.0, rng) for _ in range(4)])
    truth, mean = tiny_stages().categories[3], betas.mean(0)
    alone = parts_of(decoder, betas[-1], truth)
    found = parts_of(decoder, betas[-1], truth, average=mean, shown=4)
    assert [found[kind].shown for kind in (Embedding, Reconstruction, Caption)] == [4, 4, 4]
    score, single = found[Embedding].score, alone[Embedding].score
    told = {"shown", "average_predicted", "average_rank"}
    for name in single.__slots__:
        assert name in told or getattr(score, name) == getattr(single, name), name
    assert (single.shown, single.average_predicted, single.average_rank) == (1, None, None)

    loaded = open_participant(bundle)
    encoding, adapter = encoding_from(loaded.encoding), adapter_from(loaded.adapter)
    readings = [encoding.read(beta) for beta in betas]
    pictures = np.sum([one.pictures for one in readings], 0)  # independent trials: their log-likelihoods add up
    heads = np.sum([one.categories for one in readings], 0)
    by_category = []
    for category in range(8):
        own = pictures[encoding.picture_category == category]
        by_category.append(encoding.encoder_weight[0] * (logsumexp(own) - np.log(len(own))) + heads[category])
    np.testing.assert_allclose(encoding.categories_of(encoding.read(mean), 4), by_category, rtol=1e-3, atol=1e-3)
    assert score.average_predicted == tiny_stages().categories[int(np.argmax(by_category))]
    candidates = decoder.candidates
    summed = np.sum([decoder.likelihood(beta, candidates.names) for beta in betas], 0)
    place = candidates.names.index(truth)
    assert score.average_rank == 1 + np.sum(summed > summed[place])

    pipeline = TinyPipeline(tiny_stages())
    pipeline.take(adapter)
    embedded = pipeline.embed(adapter.chosen(mean))
    np.testing.assert_array_equal(found[Embedding].tokens, embedded.tokens)
    settled = pipeline.settle(embedded, score.average_predicted, "r5t1")
    np.testing.assert_array_equal(found[Reconstruction].image, pipeline.picture(settled, "r5t1"))
    assert np.any(found[Reconstruction].image != alone[Reconstruction].image)
    with pytest.raises(EngineError, match="expected a mean of the 60 voxels"):
        next(decoder.decode(betas[-1], (), "r5t1", average=mean[1:], shown=4))


def test_four_noisy_trials_name_more_than_one(decoder: Decoder) -> None:
    rng = np.random.default_rng(9)
    single = mean = 0
    for category in range(8):
        for _ in range(6):
            betas = np.stack([category_beta(category, 5.0, rng) for _ in range(4)])
            score = next(decoder.decode(betas[-1], (), "t", average=betas.mean(0), shown=4)).score  # type: ignore[attr-defined]
            single += score.predicted == tiny_stages().categories[category]
            mean += score.average_predicted == tiny_stages().categories[category]
    assert mean > single + 8  # of 48
    assert mean > 24


def test_feedback_of_single_trials_goes_without_means(tmp_path: Path) -> None:
    raw = {
        "session": {"participant": "sim", "output": "."},
        "scanner": {"export_dir": "."},
        "decode": {"average_repeats": True},
        "feedback": {"score": "similarity", "target": "cat7"},
    }
    with pytest.raises(SettingsError, match=r"average_repeats: expected false beside the score similarity"):
        parse(raw, root=tmp_path)
    assert parse({**raw, "feedback": {}}, root=tmp_path).decode.average_repeats
