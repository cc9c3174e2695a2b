"""Fine-tuning on a visit: what is added to a network, who may judge it, which step is kept, and the bundle of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from calibration import cross_fitting  # noqa: E402
from calibration.adapter_fit import Trials  # noqa: E402
from calibration.calibrator import Calibrator, write_bundle  # noqa: E402
from calibration.session_trials import RecordedCalibration  # noqa: E402
from engines.finetune import mindeye2_tunable, order  # noqa: E402
from engines.finetune.lora import LowRank, add_low_rank, merged_state  # noqa: E402
from engines.finetune.mindeye2_tunable import MindEye2Tunable  # noqa: E402
from engines.finetune.tiny_tunable import TinyTunable  # noqa: E402
from engines.finetune.training import Judged, Tuning, choose, train  # noqa: E402
from engines.importing.fake import write_fake_mindeye2  # noqa: E402
from rtdecode.__main__ import main  # noqa: E402
from rtdecode.decode.families.mindeye2 import FAMILY  # noqa: E402
from rtdecode.decode.runtime.backends import choose as choose_backend  # noqa: E402
from rtdecode.decode.score.adapter import Adapter, adapter_from  # noqa: E402
from rtdecode.decode.score.candidates import Candidates  # noqa: E402
from rtdecode.decoded import Reconstruction  # noqa: E402
from rtdecode.errors import BundleError, TrainingError  # noqa: E402
from rtdecode.packs import EnginePack, open_pack, open_participant  # noqa: E402
from rtdecode.settings import DecodeSettings  # noqa: E402
from rtdecode.statistics import mid_ranks  # noqa: E402
from tests.decode_small import tiny_decoder, tiny_pack  # noqa: E402
from tests.unit.test_calibration_calibrator import calibrate, pictures  # noqa: E402

N = 48
QUICK = Tuning(steps=20, every=5, minutes=10.0)


@pytest.fixture(scope="module")
def seen() -> tuple[Candidates, Trials, Calibrator]:
    candidates, betas = pictures(N, 0)
    calibrator = calibrate(candidates, betas, np.arange(N))
    return candidates, calibrator.taken(), calibrator


@pytest.fixture(scope="module")
def crossed(seen: tuple[Candidates, Trials, Calibrator]) -> tuple[cross_fitting.Crossed, list[cross_fitting.Crossed]]:
    candidates, trials, _ = seen
    return cross_fitting.whole(trials, candidates), cross_fitting.set_apart(trials, candidates)


Both = tuple[cross_fitting.Crossed, list[cross_fitting.Crossed]]


@pytest.fixture(scope="module")
def visit(seen: tuple[Candidates, Trials, Calibrator], tmp_path_factory: pytest.TempPathFactory) -> RecordedCalibration:
    candidates, _, calibrator = seen
    folder = tmp_path_factory.mktemp("visit")
    write_bundle(folder / "bundle", calibrator.fit(), pack=tiny_pack(), participant="01", session="01")
    return RecordedCalibration(
        folder=folder, bundle=open_participant(folder / "bundle"), pack=tiny_pack(), stimuli=None,
        candidates=candidates, calibrator=calibrator, nulls=np.zeros((0, 120), np.float32),
        rest=np.zeros((0, 120), np.float32), decoded=(),
    )  # fmt: skip


@pytest.fixture
def at_hand(visit: RecordedCalibration, crossed: Both, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The visit and what it was decoded to are there, and need not be read or computed again."""
    monkeypatch.setattr(order, "read_calibration", lambda *_: visit)
    monkeypatch.setattr(order.cross_fitting, "whole", lambda *_: crossed[0])
    monkeypatch.setattr(order.cross_fitting, "set_apart", lambda *_: crossed[1])
    return monkeypatch


def tunable(candidates: Candidates, crossed: cross_fitting.Crossed, rank: int | None = 4) -> TinyTunable:
    return TinyTunable(tiny_pack(), crossed.adapter.token_mean, float(candidates.tokens.std(0).mean()), rank)


def weights_of(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def test_what_is_added_is_nothing_at_first_and_merges_into_the_weights() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(9, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3, bias=False))
    x = torch.randn(5, 9)
    before, state = plain(x).detach().numpy(), {k: v.numpy().copy() for k, v in plain.state_dict().items()}
    added = add_low_rank(plain, 4)
    assert [layer.down.shape[0] for layer in added] == [4, 3]  # never above a layer's own sizes
    for layer in added:
        layer.begin(torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(plain(x).detach().numpy(), before)
    assert {name for name, value in plain.named_parameters() if value.requires_grad} == {
        "0.down", "0.up", "2.down", "2.up",
    }  # fmt: skip
    with torch.no_grad():
        for layer in added:
            layer.up.copy_(torch.randn(layer.up.shape))
    merged = {name: value.numpy() for name, value in merged_state(plain).items()}
    assert merged.keys() == state.keys()
    up, down = (getattr(added[0], name).detach().numpy() for name in ("up", "down"))
    np.testing.assert_allclose(merged["0.weight"], state["0.weight"] + up @ down, rtol=1e-5, atol=1e-6)
    dense = np.tanh(x.numpy() @ merged["0.weight"].T + merged["0.bias"]) @ merged["2.weight"].T
    np.testing.assert_allclose(plain(x).detach().numpy(), dense, rtol=1e-4, atol=1e-5)


def test_the_start_is_the_closed_form_decoder(seen: tuple[Candidates, Trials, Calibrator], crossed: Both) -> None:
    whole, _ = crossed
    network = tunable(seen[0], whole)
    network.begin(whole.adapter, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(network.found(torch.from_numpy(whole.decoded)).detach().numpy(), whole.decoded)


def test_nothing_that_judges_a_trial_has_met_it(seen: tuple[Candidates, Trials, Calibrator], crossed: Both) -> None:
    """Other responses to the trials set apart, and other pictures of them, change nothing of what judges them."""
    candidates, trials, _ = seen
    _, sets = crossed
    assert sorted(np.concatenate([one.apart for one in sets])) == list(range(N))
    first = sets[0]
    betas, shown = trials.betas.copy(), trials.shown.copy()
    betas[first.apart] = np.random.default_rng(3).standard_normal((len(first.apart), betas.shape[1]))
    shown[first.apart] = np.roll(shown[first.apart], 1)
    other, late, *_ = cross_fitting.set_apart(replace(trials, betas=betas, shown=shown), candidates)
    np.testing.assert_array_equal(other.apart, first.apart)
    tokens = torch.from_numpy(candidates.tokens)
    trained = []
    for one, pictures_of in ((first, trials.shown), (other, shown)):
        network = tunable(candidates, first)
        train(network, one, pictures_of, tokens, QUICK, number=1, last=5)
        trained.append((one, weights_of(network)))
    (mine, weights), (theirs, again) = trained
    np.testing.assert_array_equal(mine.decoded, theirs.decoded)
    assert np.any(mine.apart_decoded != theirs.apart_decoded)  # the trials themselves are others
    for name, value in weights.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert np.any(late.decoded != sets[1].decoded)  # where they are learned from, it is seen


def judged(rng: np.random.Generator, gain: float, n: int = 40, steps: int = 3) -> Judged:
    """Trials whose own picture stands out more from step to step."""
    cosines = 0.1 * rng.standard_normal((1, n, n)).repeat(steps, 0)
    for step in range(steps):
        cosines[step, np.arange(n), np.arange(n)] += 0.1 + gain * step
    errors = np.ones((steps, n)) + 0.01 * rng.standard_normal((steps, n))
    return Judged(trials=np.arange(n), shown=np.arange(n), cosines=cosines, errors=errors)


def test_a_step_is_kept_only_if_it_is_surely_better() -> None:
    rng = np.random.default_rng(0)
    better = choose([judged(rng, 0.1), judged(rng, 0.1)])
    assert better.step == 2
    assert better.gain > 1.645 * better.error > 0
    assert choose([judged(rng, -0.1), judged(rng, -0.1)]).step == 0
    noise = []
    for seed in range(200):
        own = np.random.default_rng(seed)
        one = judged(own, 0.0, steps=2)
        one.errors[:] = 1 + 0.3 * own.standard_normal(one.errors.shape)
        noise.append(choose([one]).step)
    assert np.mean(noise) < 0.12  # one in twenty, and what 200 draws may show


def test_the_gain_is_that_of_a_naive_sum() -> None:
    rng = np.random.default_rng(5)
    one = judged(rng, 0.1, n=12)
    found = choose([one])
    grid = np.logspace(-3, 1, 41)

    def loss(step: int) -> np.ndarray:
        best = None
        for temperature in grid:
            logits = one.cosines[step] / temperature
            total = [np.logaddexp.reduce(row) - row[own] for own, row in enumerate(logits)]
            best = total if best is None or sum(total) < sum(best) else best
        return np.array(best) + one.errors[step] / one.errors[0].mean()

    gains = loss(0) - loss(found.step)
    assert found.gain == pytest.approx(gains.mean())
    assert found.error == pytest.approx(gains.std(ddof=1) / np.sqrt(12))
    ranks = [(12 - mid_ranks(row)[own]) / 11 for own, row in enumerate(one.cosines[1])]
    np.testing.assert_allclose(one.ranks(1), ranks)


def test_a_seed_gives_the_same_network(seen: tuple[Candidates, Trials, Calibrator], crossed: Both) -> None:
    candidates, trials, _ = seen
    whole, tokens = crossed[0], torch.from_numpy(candidates.tokens)
    network = tunable(candidates, whole)
    found = []
    for seed in (0, 0, 1):
        train(network, whole, trials.shown, tokens, replace(QUICK, seed=seed), number=0, last=3)
        found.append(weights_of(network)["expected.network.judge_in.up"])
    np.testing.assert_array_equal(found[0], found[1])
    assert np.any(found[0] != found[2])


def test_the_bundle_decodes_by_the_network_and_the_one_before_by_the_ridge_alone(
    visit: RecordedCalibration, at_hand: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_hand.setattr("engines.finetune.training.DOUBT", -100.0)  # any gain will do here
    made: list[TinyTunable] = []
    make = order.make_tunable
    at_hand.setattr(order, "make_tunable", lambda *given: made.append(make(*given)) or made[0])
    told = ["engines", "finetune", "tiny", "--session", str(tmp_path), "--out", str(tmp_path / "tuned")]
    assert main([*told, "--rank", "4", "--steps", "20", "--minutes", "10"]) == 0
    said = capsys.readouterr().out
    tuned = open_participant(tmp_path / "tuned")
    figures = tuned.provenance.network
    assert figures is not None
    assert (figures.rank, figures.trials, figures.sets, figures.seed) == (4, N, 4, 0)
    assert f"of {N} trials set apart" in said
    assert figures.steps > 0
    assert tuned.network is not None
    for name in ("adapter", "encoding", "evidence", "statistics"):  # scores, and what they are worth, are as before
        path = f"{name}.safetensors"
        assert (tuned.folder / path).read_bytes() == (visit.bundle.folder / path).read_bytes()
    decoder = tiny_decoder()
    adapter, beta = adapter_from(tuned.adapter), visit.calibrator.taken().betas[3]
    by_ridge = adapter.predict(adapter.chosen(beta)) @ adapter.basis + adapter.token_mean
    with torch.no_grad():
        expected = made[0].found(torch.from_numpy(by_ridge)[None]).numpy()[0]
    decoder.load(tuned)
    found, tuned_score = decoder.embed(beta).tokens.ravel(), decoder.embed(beta).score
    drawn = [part for part in decoder.decode(beta, (), "r1t1") if isinstance(part, Reconstruction)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - by_ridge).max() > 0.01
    decoder.load(visit.bundle)
    np.testing.assert_allclose(decoder.embed(beta).tokens.ravel(), by_ridge, atol=1e-4)
    assert decoder.embed(beta).score.probabilities == tuned_score.probabilities
    before = [part for part in decoder.decode(beta, (), "r1t1") if isinstance(part, Reconstruction)]
    np.testing.assert_array_equal(drawn[0].image, before[0].image)  # of the ridge's tokens, as before


def test_a_network_that_is_not_better_is_not_kept(at_hand: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_hand.setattr("engines.finetune.training.DOUBT", 1e6)
    given = order.FineTuneOrder(session=tmp_path, stimuli=None, out=tmp_path / "bundles" / "out", rank=4, tuning=QUICK)
    order.fine_tune(tiny_pack(), given, lambda _: None)
    kept = open_participant(tmp_path / "bundles" / "out")
    assert kept.network is None
    assert kept.provenance.network is not None
    assert kept.provenance.network.steps == 0
    assert kept.provenance.network.percentile == kept.provenance.network.percentile_ridge


def test_what_is_in_the_way_is_told_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    given = order.FineTuneOrder(session=tmp_path, stimuli=None, out=tmp_path, rank=4, tuning=QUICK)
    with pytest.raises(BundleError, match="holds other files; name another"):
        order.fine_tune(tiny_pack(), given, lambda _: pytest.fail("went on"))
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rank": 3}, "rank: expected 4 to 16, got 3"),
        ({"tuning": replace(QUICK, minutes=1e-9)}, "give it --minutes"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_remedy(
    at_hand: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    given = order.FineTuneOrder(session=tmp_path, stimuli=None, out=tmp_path / "out", rank=4, tuning=QUICK)
    with pytest.raises(TrainingError, match=reason):
        order.fine_tune(tiny_pack(), replace(given, **changed), lambda _: None)
    other = replace(tiny_pack(), identity="0" * 64)
    with pytest.raises(TrainingError, match="calibrated with pack tiny"):
        order.fine_tune(other, given, lambda _: None)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    folder = tmp_path_factory.mktemp("fake") / "pack"
    write_fake_mindeye2(folder, dims="small", stages=("ridge", "backbone", "prior"), precision="float32")
    return open_pack(str(folder))


def test_another_prior_is_sampled_by_a_graph_of_its_own(fake: EnginePack) -> None:
    """A graph that was captured with the prior of before would go on running it."""
    captured: list[str] = []

    def whole(name: str, function: Any) -> Any:
        captured.append(name)
        return function

    pipeline = FAMILY.pipeline(fake, DecodeSettings(prior_steps=3), choose_backend("auto", fake), seed=0)
    stages = replace(pipeline._mind.stages, whole=whole)
    pipeline._mind.take_stages(replace(stages, prior=lambda x, *_: 0 * x))
    assert captured == ["prior sampler"]
    hidden = pipeline._mind.embed(np.zeros(pipeline._mind.voxels, np.float32))
    assert not pipeline._mind.host(pipeline._mind.clean(hidden, seed=0)).any()


def hidden_trials(pack: EnginePack, adapter: Adapter, n: int = 24) -> tuple[cross_fitting.Crossed, torch.Tensor]:
    """Hidden values of trials, noisy readings of what their pictures have."""
    rng = np.random.default_rng(0)
    said = pack.description
    hidden = rng.standard_normal((n, said.size("backbone", "hidden"))).astype(np.float32)
    tokens = torch.from_numpy(rng.standard_normal((n, said.tokens.count, said.tokens.channels)).astype(np.float32))
    left = np.arange(n - 8)
    crossed = cross_fitting.Crossed(
        rows=left, decoded=hidden[left], adapter=adapter, apart=np.arange(n - 8, n), apart_decoded=hidden[n - 8 :]
    )
    return crossed, tokens


@pytest.mark.parametrize("rank", [4, None])
def test_backbone_and_prior_of_mindeye2_are_tuned_sealed_and_taken_back(
    fake: EnginePack, crossed: Both, tmp_path: Path, rank: int | None
) -> None:
    adapter = crossed[0].adapter
    hidden, tokens = hidden_trials(fake, adapter)
    network = MindEye2Tunable(fake, rank)
    told = train(network, hidden, np.arange(24), tokens, replace(QUICK, rate=1e-3), number=0, last=10)
    network.eval()
    assert len(told.errors) == 3
    assert np.any(told.errors[2] != told.errors[0])  # the prior
    assert np.any(told.cosines[2] != told.cosines[0])  # the projector
    layers = [module for module in network.modules() if isinstance(module, LowRank)]
    assert bool(layers) == (rank is not None)
    network.write_network(tmp_path / "network", "own")
    own = open_pack(str(tmp_path / "network"))
    pipeline = FAMILY.pipeline(fake, DecodeSettings(prior_steps=3), choose_backend("auto", fake), seed=0)
    shared = pipeline._mind.stages.backbone(torch.from_numpy(hidden.apart_decoded)).retrieval.numpy()
    pipeline.take_network(own, adapter)
    stages = pipeline._mind.stages
    with torch.no_grad():
        expected = network.found(torch.from_numpy(hidden.apart_decoded)).numpy()
    found = stages.backbone(torch.from_numpy(hidden.apart_decoded)).retrieval.numpy()
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(found - shared).max() > 1e-3
    x, t = torch.randn(tokens[:2].shape), torch.full((2,), 5)
    keep = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        clean = network.prior(x, t, tokens[:2], keep_condition=keep, keep_image=keep).numpy()
    np.testing.assert_allclose(stages.prior(x, 5, tokens[:2], 1.0).numpy(), clean, rtol=1e-3, atol=1e-4)
    pipeline.take_network(None, adapter)
    back = pipeline._mind.stages.backbone(torch.from_numpy(hidden.apart_decoded)).retrieval.numpy()
    np.testing.assert_array_equal(back, shared)
    network.begin(adapter, torch.Generator().manual_seed(0))
    with torch.no_grad():
        start = network.found(torch.from_numpy(hidden.apart_decoded)).numpy()
    np.testing.assert_allclose(start, shared.reshape(start.shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [4, None])
def test_in_bfloat16_products_are_halved_and_the_network_goes_where_it_goes_in_single_precision(
    fake: EnginePack, crossed: Both, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that computes in bfloat16, but on the CPU: frozen weights are kept in it, what is trained is not."""
    adapter = crossed[0].adapter
    hidden, tokens = hidden_trials(fake, adapter, n=16)
    found, read = {}, mindeye2_tunable.load
    for half in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda half=half: half)
            patched.setattr(torch.cuda, "is_bf16_supported", lambda: True)
            patched.setattr(
                mindeye2_tunable, "load", lambda *given, device, dtype: read(*given, device="cpu", dtype=dtype)
            )
            network = MindEye2Tunable(fake, rank)
        assert network.precision == (torch.bfloat16 if half else None)
        layers: set[torch.dtype] = set()
        for module in network.network.modules():
            if isinstance(module, LowRank if rank else torch.nn.Linear):
                module.register_forward_hook(lambda _m, _g, out, layers=layers: layers.add(out.dtype))
        told = train(
            network, hidden, np.arange(16), tokens, replace(QUICK, steps=4, every=2, rate=3e-3), number=0, last=4
        )
        assert layers == {torch.bfloat16 if half else torch.float32}
        trained = [value for value in network.parameters() if value.requires_grad]
        assert {value.dtype for value in trained} == {torch.float32}
        kept = {value.dtype for value in network.network.parameters() if not value.requires_grad and value.dim() > 1}
        assert rank is None or kept == {torch.bfloat16 if half else torch.float32}
        assert all(bool(torch.isfinite(value).all()) for value in trained)
        found[half] = told
    moved = [one.errors[2] - one.errors[0] for one in (found[False], found[True])]
    assert np.abs(moved[0]).max() > 0
    assert np.corrcoef(moved[0], moved[1])[0, 1] > 0.9
    np.testing.assert_allclose(found[True].errors, found[False].errors, rtol=0.1)
    assert np.any(found[True].errors != found[False].errors)
