"""A MindEye1 network that takes up a new participant within a visit: where it begins, and what its bundle decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from safetensors.torch import save_file  # noqa: E402

from calibration import cross_fitting  # noqa: E402
from calibration.calibrator import Calibrator, write_bundle  # noqa: E402
from calibration.session_trials import RecordedCalibration  # noqa: E402
from engines.embed.latent_fit import LatentOrder, learn_latents  # noqa: E402
from engines.finetune import order  # noqa: E402
from engines.finetune.mindeye1_tunable import MindEye1Tunable  # noqa: E402
from engines.finetune.training import Tuning, train  # noqa: E402
from engines.importing.mindeye1_files import draft_mindeye1  # noqa: E402
from rtdecode.decode.families.latent_map import latent_map, latents_of  # noqa: E402
from rtdecode.decode.families.mindeye1 import FAMILY  # noqa: E402
from rtdecode.decode.networks.build import load  # noqa: E402
from rtdecode.decode.runtime.backends import choose  # noqa: E402
from rtdecode.decode.score.adapter import adapter_from  # noqa: E402
from rtdecode.decode.score.candidates import Candidates  # noqa: E402
from rtdecode.errors import EngineError  # noqa: E402
from rtdecode.packs import EnginePack, open_pack, open_participant  # noqa: E402
from rtdecode.settings import DecodeSettings  # noqa: E402
from tests.published import CLIP_TOKENS  # noqa: E402
from tests.small_families import DIM, mindeye1_network  # noqa: E402

PUBLISHED, MASK, N = 40, 60, 48
QUICK = Tuning(steps=10, every=5, minutes=10.0)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Of pictures that differ in six ways."""
    draw = np.random.default_rng(0)
    drawn = draw.standard_normal((N, 6)) @ draw.standard_normal((6, CLIP_TOKENS * DIM)) / (6 * DIM) ** 0.5
    return drawn.reshape(N, CLIP_TOKENS, DIM).astype(np.float32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    folder = tmp_path_factory.mktemp("plain")
    sources = mindeye1_network(folder / "files", PUBLISHED)
    draft_mindeye1(sources).seal(folder / "pack", name="one", licence="none", precision="float32")
    return open_pack(str(folder / "pack"))


@pytest.fixture(scope="module")
def pack(plain: EnginePack, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    """With the map of a participant who saw every picture twice."""
    folder = tmp_path_factory.mktemp("mapped")
    draw = np.random.default_rng(1)
    flat, rows = tokens.reshape(N, -1), np.arange(2 * N) % N
    betas = (flat @ draw.standard_normal((flat.shape[1], PUBLISHED)) / 3)[rows] + draw.standard_normal(
        (2 * N, PUBLISHED)
    )
    save_file({"tokens": torch.from_numpy(tokens)}, folder / "pictures.safetensors")
    given = {"betas": torch.from_numpy(betas.astype(np.float32)), "picture": torch.from_numpy(rows)}
    save_file(given, folder / "published.safetensors")
    asked = LatentOrder(pictures=folder / "pictures.safetensors", participants=[(0, folder / "published.safetensors")])
    learned = learn_latents(plain, asked, folder / "pack", progress=lambda _: None)
    assert (learned.pictures, learned.trials) == (N, 2 * N)
    made = open_pack(str(folder / "pack"))
    table = latents_of(made)
    assert table is not None
    assert table.held_out_r2 > 0.2
    brain = load(made, "brain", device="cpu", dtype=torch.float32)
    values = (given["betas"] @ brain.lin0[0].weight.T + brain.lin0[0].bias).reshape(2, N, -1).mean(0).numpy()
    found = latent_map(made)(tokens)
    assert np.square(found - values).mean() < 0.5 * values.var(0).mean()
    other = LatentOrder(pictures=asked.pictures, participants=[(1, asked.participants[0][1])])
    with pytest.raises(EngineError, match="expected participant 0"):
        learn_latents(plain, other, folder / "never", progress=lambda _: None)
    return made


@pytest.fixture(scope="module")
def visit(pack: EnginePack, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> RecordedCalibration:
    draw = np.random.default_rng(2)
    flat = tokens.reshape(N, -1)
    betas = flat @ draw.standard_normal((flat.shape[1], MASK)) + draw.standard_normal((N, MASK))
    candidates = Candidates(
        names=tuple(f"s{i}" for i in range(N)),
        tokens=tokens,
        category=np.arange(N) % 2,
        categories=("a", "b"),
        prototypes=np.stack([tokens[::2].mean(0), tokens[1::2].mean(0)]),
        groups=(slice(0, flat.shape[1]),),
    )
    calibrator = Calibrator(candidates)
    for i, beta in enumerate(betas.astype(np.float32)):
        calibrator.add(beta, trial=f"t{i}", stimulus=f"s{i}", run=1 + i // 12)
    folder = tmp_path_factory.mktemp("visit")
    write_bundle(folder / "bundle", calibrator.fit(), pack=pack, participant="01", session="01")
    return RecordedCalibration(
        folder=folder, bundle=open_participant(folder / "bundle"), pack=pack, stimuli=None,
        candidates=candidates, calibrator=calibrator, nulls=np.zeros((0, MASK), np.float32),
        rest=np.zeros((0, MASK), np.float32), decoded=(),
    )  # fmt: skip


@pytest.mark.parametrize("rank", [4, None])
def test_it_begins_as_the_ridge_and_goes_on_from_the_map(
    pack: EnginePack, visit: RecordedCalibration, tokens: np.ndarray, rank: int | None
) -> None:
    whole = cross_fitting.whole(visit.calibrator.taken(), visit.candidates)
    network = MindEye1Tunable(pack, adapter_from(visit.bundle.adapter), MASK, rank)
    shown, decoded = np.arange(N), torch.from_numpy(whole.decoded)
    tuning = Tuning(steps=10, every=5, rate=1e-3)
    network.begin(whole.adapter, torch.Generator().manual_seed(0))
    right = torch.from_numpy(tokens[: len(decoded)])
    np.testing.assert_array_equal(network.found(decoded).numpy(), whole.decoded)
    np.testing.assert_allclose(
        network.errors(decoded, right).numpy(), np.square(whole.decoded - right.flatten(1).numpy()).sum(1), rtol=1e-5
    )
    brain = load(pack, "brain", device="cpu", dtype=torch.float32)
    values = torch.from_numpy(latent_map(pack)(whole.decoded.reshape(-1, CLIP_TOKENS, DIM)))
    adapter = whole.adapter
    projected = adapter.basis.T @ np.linalg.solve(adapter.basis @ adapter.basis.T, adapter.basis)
    within = (whole.decoded - adapter.token_mean) @ projected + adapter.token_mean
    np.testing.assert_allclose(within, whole.decoded, atol=1e-3)  # nothing of the tokens is lost on the way
    network.leave_start()
    with torch.no_grad():
        x = brain.lin0[2](brain.lin0[1](values))
        for block in brain.mlp:
            x = x + block(x)
        said = brain.projector(brain.lin1(x).reshape(-1, CLIP_TOKENS, DIM)).flatten(1)
        np.testing.assert_allclose(network.found(decoded).numpy(), said.numpy(), rtol=1e-3, atol=1e-3)
    before = brain.state_dict()["lin1.weight"].numpy()
    for _ in range(2):  # what one training changed is forgotten by the next
        told = train(network, whole, shown, torch.from_numpy(tokens), tuning, number=0, last=0)
        assert told.errors.shape[1] == 0
        train(network, whole, shown, torch.from_numpy(tokens), tuning, number=0, last=5)
        again = network.first.weight.detach().numpy().copy()
    train(network, whole, shown, torch.from_numpy(tokens), tuning, number=0, last=5)
    np.testing.assert_array_equal(network.first.weight.detach().numpy(), again)
    np.testing.assert_array_equal(load(pack, "brain", device="cpu", dtype=torch.float32).lin1.weight.numpy(), before)


def test_the_bundle_decodes_as_the_network_that_was_tuned(
    pack: EnginePack, visit: RecordedCalibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("engines.finetune.training.DOUBT", -1e6)
    monkeypatch.setattr(
        "engines.finetune.training._losses",
        lambda judged, step: -step * np.ones(sum(len(one.trials) for one in judged)),
    )
    monkeypatch.setattr(order, "read_calibration", lambda *_: visit)
    made: list[MindEye1Tunable] = []
    make = order.make_tunable
    monkeypatch.setattr(order, "make_tunable", lambda *given: made.append(make(*given)) or made[0])
    given = order.FineTuneOrder(session=tmp_path, stimuli=None, out=tmp_path / "tuned", rank=4, tuning=QUICK)
    _, figures = order.fine_tune(pack, given, lambda _: None)
    assert figures.steps == 10
    tuned = open_participant(tmp_path / "tuned")
    assert tuned.provenance.network == figures
    assert tuned.network is not None
    adapter, old = adapter_from(tuned.adapter), adapter_from(visit.bundle.adapter)
    assert len(adapter.voxels) == MASK
    pipeline = FAMILY.pipeline(pack, DecodeSettings(prior_steps=3), choose("auto", pack), seed=0)
    pipeline.take_network(open_pack(str(tuned.network)), adapter)
    pipeline.take(adapter)
    for beta in visit.calibrator.taken().betas[:5]:
        by_ridge = old.predict(old.chosen(beta)) @ old.basis + old.token_mean
        with torch.no_grad():
            expected = made[0].found(torch.from_numpy(by_ridge)[None]).numpy()[0]
        found = pipeline.embed(adapter.chosen(beta))
        np.testing.assert_allclose(found.tokens.astype(np.float32).ravel(), expected, atol=5e-3)
        assert np.abs(expected - by_ridge).max() > 0.05
        np.testing.assert_allclose(found.components, old.predict(old.chosen(beta)), atol=1e-4)  # scores stay
    drawn = pipeline.settle(pipeline.embed(adapter.chosen(beta)), "a", "r1t1")
    assert np.isfinite(drawn.tokens).all()


def test_without_a_map_it_is_refused_with_the_remedy(plain: EnginePack, visit: RecordedCalibration) -> None:
    with pytest.raises(EngineError, match="rtdecode engines latents"):
        MindEye1Tunable(plain, adapter_from(visit.bundle.adapter), MASK, 4)
