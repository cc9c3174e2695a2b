"""The recipe of the tiny pack, in small."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("onnx")
pytest.importorskip("diffusers")

from diffusers import UNet2DConditionModel  # noqa: E402

from engines import cli  # noqa: E402
from engines.tiny import export, layout, networks, precision, stages, train  # noqa: E402
from engines.tiny import whole_recipe as recipe  # noqa: E402
from engines.tiny.data import draw_sample  # noqa: E402
from engines.tiny.diffusion import TinyAutoencoder, TinyUnclip  # noqa: E402
from engines.tiny.few_steps import FewSteps, train_few_steps  # noqa: E402
from engines.tiny.noise import GROUPS, GroupNoise  # noqa: E402
from engines.tiny.tiny_prior import DiffusionPrior  # noqa: E402
from rtdecode.decode.families.tiny.painter import Painter  # noqa: E402
from rtdecode.decode.runtime.engine import OnnxEngine  # noqa: E402
from rtdecode.errors import EngineError  # noqa: E402
from tests.decode_small import tiny_stages  # noqa: E402


def test_a_code_goes_into_tokens_and_back() -> None:
    sample = draw_sample(20, 0)
    code = torch.from_numpy(sample.codes)
    tokens = networks.assemble(code, torch.randn(20, 16, layout.CHANNELS))
    assert tokens.shape == (20, layout.TOKENS, layout.CHANNELS)
    torch.testing.assert_close(networks.read_code(tokens), code)


def test_noise_has_the_covariance_of_the_tokens_and_leaves_the_wanted_r2() -> None:
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(layout.VALUES, layout.VALUES, generator=draw) / 20
    tokens = (torch.randn(6000, layout.VALUES, generator=draw) @ mixing + 2).reshape(-1, layout.TOKENS, layout.CHANNELS)
    noise = GroupNoise(tokens)
    noisy = noise(tokens, torch.tensor([[0.5, 0.2]]).expand(6000, 2), draw)
    for group, r2 in zip(GROUPS, (0.5, 0.2), strict=True):
        truth = tokens.flatten(1)[:, group] - tokens.flatten(1)[:, group].mean(0)
        given = noisy.flatten(1)[:, group] - noisy.flatten(1)[:, group].mean(0)
        explained = 1 - (truth - given).square().sum() / truth.square().sum()
        assert float(explained) == pytest.approx(r2, abs=0.02)
        expected = r2 * torch.cov(truth.T)
        assert float((torch.cov(given.T) - expected).norm() / expected.norm()) < 0.25


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": False}, torch.float32),
        (None, torch.float32),
    ],
)
def test_networks_compute_in_bfloat16_where_the_cpu_does(
    has: dict[str, bool] | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has is None:  # an older torch
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    with precision.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected
    assert (precision.half_precision() or torch.float32) == expected


@pytest.mark.parametrize(("words", "threads"), [([], 1), (["--threads", "3"], 3)])
def test_the_pack_is_trained_on_as_many_threads_as_asked(
    words: list[str], threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise RuntimeError("begun")

    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(recipe, "train", begin)
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    args = parser.parse_args(["engines", "train-tiny", "--out", str(tmp_path), *words])
    with pytest.raises(RuntimeError, match="begun"):
        args.handler(args)
    assert asked == [threads]
    with pytest.raises(SystemExit):
        parser.parse_args(["engines", "train-tiny", "--out", str(tmp_path), "--threads", "0"])


def test_a_decoder_moves_the_object_frame_with_the_code() -> None:
    decoder = networks.TinyDecoder()
    geometry = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.6, 0.6], [0.0, 1.0, 0.0, 0.0, 0.6, 0.6]])
    frame = decoder._frame(decoder.grid3, geometry)
    centres = [(frame[i, 0].abs() + frame[i, 1].abs()).flatten().argmin() % 64 for i in range(2)]
    low, high = 0.6, 0.95
    room = 0.5 - 0.5 * (low + high) / 2
    assert int(centres[0]) in (31, 32)
    assert int(centres[1]) == pytest.approx(63.5 * (0.5 + room), abs=1)


def small_trained() -> train.Trained:
    """Networks of the first half of the recipe with random weights, and a few pictures."""
    torch.manual_seed(0)
    sample = draw_sample(16, 0)
    embedder = networks.TinyEmbedder().eval()
    tokens = train.embed_all(embedder, sample.pictures)
    made = train.Trained(
        embedder=embedder,
        prior=networks.TinyPrior(),
        decoder=networks.TinyDecoder(),
        captioner=networks.Captioner(len(layout.vocabulary())),
        text=torch.nn.Identity(),
        projection=networks.PictureProjection(),
        judge=networks.Judge(),
        critic=networks.Critic(),
        noise=GroupNoise(tokens),
        sample=sample,
        tokens=tokens,
        stages={},
    )
    for module in (made.embedder, made.prior, made.decoder, made.captioner, made.judge, made.critic):
        module.eval().requires_grad_(False)
    return made


def test_the_few_step_stages_train_from_nothing_and_are_taken_up_where_they_ended(tmp_path: Path) -> None:
    trained = small_trained()
    first = train_few_steps(trained, tmp_path, seed=1, effort=0.0, resume=False)
    assert list(first.stages) == [path.stem for path in sorted((tmp_path / "checkpoints").iterdir(), key=_age)]
    assert all(fitted.skipped == 0 for fitted in first.stages.values())
    again = train_few_steps(trained, tmp_path, seed=1, effort=0.0, resume=True)
    for name in ("autoencoder", "prior", "prior_teacher", "unclip", "unclip_teacher"):
        one, other = getattr(first, name).state_dict(), getattr(again, name).state_dict()
        assert all(torch.isfinite(value).all() for value in one.values())
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not torch.equal(first.unclip.unet.conv_out.weight, first.unclip_teacher.unet.conv_out.weight)
    assert len(first.r2) == 4


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


@functools.cache
def small_stages() -> dict[str, stages.Stage]:
    """Every network of the pack with random weights, as `engines train-tiny` exports them."""
    trained = small_trained()
    prior, unclip, autoencoder = DiffusionPrior(), TinyUnclip(), TinyAutoencoder()
    prior.set_statistics(trained.tokens)
    for zero in (
        prior.network.causal_transformer.project_out,
        unclip.unet.conv_out,
        autoencoder.draft_low,
        autoencoder.draft_high,
        autoencoder.draft_last,
    ):
        torch.nn.init.normal_(zero.weight, std=0.1)
    few = FewSteps(
        autoencoder=autoencoder,
        prior=prior,
        prior_teacher=prior,
        unclip=unclip,
        unclip_teacher=unclip,
        r2=[],
        stages={},
    )
    networks_of_it = (trained.embedder, trained.prior, trained.decoder, trained.captioner)
    for module in (*networks_of_it, prior, unclip, autoencoder):
        export.round_to_half(module.eval().requires_grad_(False))
    return stages.stages(trained, few)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports a stage of `small_stages` when its file is first asked for."""
    folder = tmp_path_factory.mktemp("stages")

    @functools.cache
    def path_of(name: str) -> Path:
        stage = small_stages()[name]
        export.export_stage(stage.module, stage.inputs, list(stage.outputs), folder / f"{name}.onnx")
        return folder / f"{name}.onnx"

    return path_of


@pytest.mark.parametrize(
    "name", ["embedder", "commit", "prior", "unclip_context", "unclip", "autoencoder", "captioner"]
)
def test_an_exported_stage_computes_what_its_network_does(name: str, exported: Callable[[str], Path]) -> None:
    stage = small_stages()[name]
    assert set(stage.outputs) == set(getattr(tiny_stages(), name).outputs)
    assert set(stage.inputs) == set(getattr(tiny_stages(), name).inputs)
    assert 0 < export.difference(stage, exported(name)) < 1e-4
    engine = OnnxEngine(exported(name), name=name, threads=1)
    with torch.no_grad():
        expected = stage.module(*(value[:1] for value in stage.inputs.values()))
    given = engine.run({key: value.numpy()[:1] for key, value in stage.inputs.items()})
    for output, truth in zip(stage.outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(given[output], truth.numpy(), atol=1e-4)


def test_a_network_that_fixes_the_batch_size_is_refused(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(len(x), 2)

    with pytest.raises(EngineError, match="fixed one of x"):
        export.export_stage(Fixed(), {"x": torch.zeros(3, 2)}, ["y"], tmp_path / "stage.onnx")


def test_an_untrained_unclip_gives_the_draft_and_keeps_what_has_no_noise() -> None:
    torch.manual_seed(1)
    unclip = TinyUnclip().eval().requires_grad_(False)
    draft, noisy = torch.randn(2, 8, 16, 16), torch.randn(2, 8, 16, 16)
    context = unclip.context(torch.randn(2, layout.TOKENS, layout.CHANNELS))
    most = unclip.clean(noisy, torch.tensor([999, 999]), draft, context)
    least = unclip.clean(noisy, torch.tensor([0, 0]), draft, context)
    assert float((most - draft).abs().mean()) < 0.1
    assert float((least - noisy).abs().mean()) < 0.05
    t = torch.tensor([999, 400])
    sigma = unclip.sigmas[t][:, None, None, None]
    signal = (1 + sigma**2).rsqrt()
    implied = (noisy - sigma * signal * unclip(noisy, t, draft, context)) / signal
    torch.testing.assert_close(implied, unclip.clean(noisy, t, draft, context), atol=1e-3, rtol=1e-3)


def test_packed_keys_and_values_attend_as_diffusers_does() -> None:
    torch.manual_seed(2)
    ours = TinyUnclip().eval().requires_grad_(False)
    torch.nn.init.normal_(ours.unet.conv_out.weight)
    theirs = UNet2DConditionModel.from_config(ours.unet.config).eval()
    theirs.load_state_dict(ours.unet.state_dict())
    latent, t = torch.randn(2, 16, 16, 16), torch.tensor([10, 900])
    tokens = torch.randn(2, layout.TOKENS, layout.CHANNELS)
    seen = ours.read((tokens - ours.token_mean) / ours.token_std) + ours.place
    with torch.no_grad():
        expected = theirs(latent, t, seen).sample
        torch.testing.assert_close(ours.unet(latent, t, ours.context(tokens)).sample, expected, atol=1e-4, rtol=1e-4)


def test_pictures_through_the_exported_stages_are_those_of_the_networks(exported: Callable[[str], Path]) -> None:
    made = small_stages()
    drawing = ("prior", "unclip_context", "unclip", "autoencoder")
    engines = {name: OnnxEngine(exported(name), name=name, threads=1) for name in drawing}
    runtime = dataclasses.replace(tiny_stages(), **engines)
    networked = dataclasses.replace(tiny_stages(), **{name: _Network(made[name], name) for name in engines})
    tokens = made["prior"].inputs["tokens"][0].numpy()
    by_engine, by_network = (Painter(s, seed=4).paint(tokens, "r01t001") for s in (runtime, networked))
    assert np.abs(by_engine.astype(int) - by_network.astype(int)).max() <= 1
    assert not np.array_equal(by_engine, Painter(runtime, seed=5).paint(tokens, "r01t001"))


class _Network:
    """A network of the pack in torch, as an engine."""

    def __init__(self, stage: stages.Stage, name: str) -> None:
        self._stage = stage
        self.name = name
        self.inputs, self.outputs = tuple(stage.inputs), stage.outputs

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            out = self._stage.module(*(torch.from_numpy(np.asarray(values[name])) for name in self.inputs))
        out = out if isinstance(out, tuple) else (out,)
        return {name: value.numpy() for name, value in zip(self.outputs, out, strict=True)}


def test_large_weights_are_stored_in_half_precision(tmp_path: Path) -> None:
    module = networks.Captioner(len(layout.vocabulary())).eval()
    export.round_to_half(module)
    tokens = torch.randn(2, layout.TOKENS, layout.CHANNELS)
    export.export_stage(module, {"tokens": tokens}, ["words", "probability"], tmp_path / "stage.onnx")
    full = 4 * sum(p.numel() for p in module.parameters())
    graph = tmp_path / "stage.onnx"
    import onnx

    stored = {int(t.data_type) for t in onnx.load(graph).graph.initializer if len(t.raw_data) > 4096}
    assert stored == {int(onnx.TensorProto.FLOAT16)}
    assert graph.stat().st_size < full * 2
