"""Pictures announced with a trial: which fits the response best, told as a message of its own."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr

from calibration.voxel_encoder_fit import carry_encoder, fit_voxel_encoder, write_voxel_encoder
from rtdecode import client as wire
from rtdecode.decode.score.voxel_encoder import PictureResponses, VoxelEncoder
from rtdecode.decode.service import LocalService
from rtdecode.decode.worker import WorkerService
from rtdecode.decoded import CandidateScore
from rtdecode.errors import BundleError, ProtocolError
from rtdecode.packs import open_participant
from rtdecode.publish import requests
from rtdecode.records import BetaUpdate, TrialEvent
from rtdecode.session.announcements import Announcements, announced
from rtdecode.session.decoding import Decoding
from rtdecode.session.entries import read_inputs
from rtdecode.session.journal import Journal
from rtdecode.session.lanes import DecodeLanes
from rtdecode.session.past import Past
from rtdecode.settings import DecodeSettings
from tests.conftest import FakeClock
from tests.decode_small import N_VOXELS, category_update, tiny_decoder, write_category_bundle
from tests.unit.test_decoding import Kept

NAMES = tuple(f"p{place:02d}" for place in range(40))
SHOWN = 3


@pytest.fixture(scope="module")
def responses() -> PictureResponses:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((len(NAMES), 12)).astype(np.float32)
    betas = tokens @ rng.standard_normal((12, N_VOXELS)) + 0.5 * rng.standard_normal((len(NAMES), N_VOXELS))
    encoder = fit_voxel_encoder(betas.astype(np.float32), NAMES, tokens)
    early = encoder.voxels < 30
    return PictureResponses(encoder=encoder, names=NAMES, predicted=encoder.predict(tokens), regions={"V1": early})


@pytest.fixture(scope="module")
def bundle(responses: PictureResponses, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that carries an encoder."""
    folder = tmp_path_factory.mktemp("candidates")
    write_category_bundle(folder / "plain")
    write_voxel_encoder(folder / "encoder", responses.encoder, {"pack": "tiny"}, responses)
    carry_encoder(open_participant(folder / "plain"), folder / "encoder", "01", folder / "bundle")
    return folder / "bundle"


def update(encoder: VoxelEncoder, predicted: np.ndarray, candidates: tuple[str, ...]) -> BetaUpdate:
    """A beta as one picture evokes it, and some noise."""
    values = np.zeros(N_VOXELS, np.float32)
    noise = np.random.default_rng(2).standard_normal(len(predicted))
    values[encoder.voxels] = (predicted + 0.3 * noise) * encoder.scale + encoder.centre
    plain = category_update(2)
    return replace(plain, beta=values, event=replace(plain.event, candidates=candidates))


def chosen_of(service: Any, beta: BetaUpdate) -> list[CandidateScore]:
    return [part for part, _ in service.decode(beta) if isinstance(part, CandidateScore)]


def test_the_candidate_that_fits_is_chosen_and_judged_by_other_voxels(
    responses: PictureResponses, bundle: Path
) -> None:
    service = LocalService(tiny_decoder())
    service.load(bundle)
    asked = ("p10", NAMES[SHOWN], "p20", "p30")
    beta = update(responses.encoder, responses.predicted[SHOWN], asked)
    (found,) = chosen_of(service, beta)
    assert (found.chosen, found.unknown, found.refused) == (NAMES[SHOWN], (), "")
    encoder = responses.encoder
    measured = encoder.standardized(beta.beta)
    rows = [NAMES.index(name) for name in asked]
    selects = encoder.selects
    for region, own in (("all", selects), ("V1", selects & responses.regions["V1"])):
        expected = [pearsonr(responses.predicted[row][own], measured[own])[0] for row in rows]
        np.testing.assert_allclose([found.agreement[region][name] for name in asked], expected, atol=1e-6)
    every = sorted(found.agreement["all"].values())
    assert found.margin == pytest.approx(every[-1] - every[-2])
    judges = ~selects
    own = pearsonr(responses.predicted[SHOWN][judges], measured[judges])[0]
    assert found.judged["all"] == pytest.approx(own, abs=1e-6)
    decoys = [row for row in range(len(NAMES)) if row not in rows]
    best = [pearsonr(responses.predicted[row][selects], measured[selects])[0] for row in decoys]
    single = (1 + sum(one >= every[-1] for one in best)) / (1 + len(decoys))
    assert found.p_decoy == pytest.approx(1 - (1 - single) ** 4)


def test_a_trial_without_candidates_has_none(bundle: Path) -> None:
    service = LocalService(tiny_decoder())
    service.load(bundle)
    assert chosen_of(service, category_update(2)) == []


def test_what_cannot_be_chosen_is_told(responses: PictureResponses, bundle: Path, tmp_path: Path) -> None:
    service = LocalService(tiny_decoder())
    service.load(bundle)
    (found,) = chosen_of(service, update(responses.encoder, responses.predicted[0], ("other", "p00")))
    assert (found.chosen, found.unknown) == ("", ("other",))
    assert found.refused == "the encoder knows 1 of the candidates, 2 are needed"
    write_category_bundle(tmp_path / "plain")
    service.load(tmp_path / "plain")
    (found,) = chosen_of(service, update(responses.encoder, responses.predicted[0], ("p01", "p00")))
    assert found.refused.startswith("the bundle carries no encoder")


def test_the_worker_says_the_same(responses: PictureResponses, bundle: Path) -> None:
    beta = update(responses.encoder, responses.predicted[SHOWN], ("p10", NAMES[SHOWN]))
    local = LocalService(tiny_decoder())
    local.load(bundle)
    worker = WorkerService(DecodeSettings())
    try:
        worker.load(bundle)
        (found,) = chosen_of(worker, beta)
    finally:
        worker.close()
    (expected,) = chosen_of(local, beta)
    assert (found.agreement, found.judged, found.p_decoy) == (expected.agreement, expected.judged, expected.p_decoy)


def test_it_is_published_after_the_score(responses: PictureResponses, bundle: Path) -> None:
    kept, lane = Kept(), DecodeLanes()
    service = LocalService(tiny_decoder())
    decoding = Decoding(service, lane, kept, kept, FakeClock(), lambda: None)  # type: ignore[arg-type]
    decoding.ask(open_participant(bundle))
    decoding.once(0)
    lane.pictures.put(update(responses.encoder, responses.predicted[SHOWN], ("p10", NAMES[SHOWN])))
    decoding.once(0)
    kinds = [type(message).__name__ for message in kept.messages]
    assert kinds[:3] == ["Embedding", "Score", "CandidateScore"]
    message = kept.messages[2]
    assert isinstance(message, wire.CandidateScore)
    assert (message.trial, message.final, message.chosen) == ("r5t1", True, NAMES[SHOWN])
    assert wire.unpack(*wire.pack(message)) == message


def test_candidates_are_announced_journalled_and_come_back(tmp_path: Path) -> None:
    said = {"v": 1, "id": 1, "request": "event", "kind": "trial", "run": 1, "trial": "a", "onset_s": 1.0}
    event = requests.decode(wire.msgpack.packb({**said, "duration_s": 2.0, "candidates": ["x", "y"]}))
    assert isinstance(event, requests.Event)
    item = announced(event)
    assert isinstance(item, TrialEvent)
    assert item.candidates == ("x", "y")
    known = Announcements([], 8.0)
    known.take(item)
    change = known.change(requests.Event(v=1, id=2, kind="amend", run=1, trial="a", candidates=["x", "z"]))
    assert change.candidates == ("x", "z")  # type: ignore[union-attr]
    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal" / "inputs.journal", FakeClock())
    journal.append("session", session="s-01")
    journal.append("trial", **asdict(item))
    journal.close()
    assert len(list(read_inputs(tmp_path / "journal" / "inputs.journal"))) == 2
    (again,) = [one for one in Past(tmp_path).inputs(0.0) if isinstance(one, TrialEvent)]
    assert again.candidates == ("x", "y")
    with pytest.raises(ProtocolError, match="candidates"):
        requests.decode(wire.msgpack.packb({**said, "duration_s": 2.0, "candidates": ["x"]}))


def test_an_encoder_of_other_voxels_is_refused(responses: PictureResponses, bundle: Path, tmp_path: Path) -> None:
    plain = bundle.with_name("plain")
    with pytest.raises(BundleError, match="expected the bundle of session 02"):
        carry_encoder(open_participant(plain), bundle.with_name("encoder"), "02", tmp_path / "b")
    write_voxel_encoder(tmp_path / "bare", responses.encoder, {})
    with pytest.raises(BundleError, match="expected what the encoder predicts of pictures"):
        carry_encoder(open_participant(plain), tmp_path / "bare", "01", tmp_path / "b")
    far = replace(responses.encoder, voxels=responses.encoder.voxels + N_VOXELS)
    write_voxel_encoder(tmp_path / "far", far, {}, replace(responses, encoder=far))
    carry_encoder(open_participant(plain), tmp_path / "far", "01", tmp_path / "b")
    with pytest.raises(BundleError, match=f"expected an encoder of the {N_VOXELS} voxels of the bundle's mask"):
        tiny_decoder().load(open_participant(tmp_path / "b"))
