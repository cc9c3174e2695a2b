"""The recipe of the tiny pack, in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("onnx")

from engines.tiny import export, layout, networks, train  # noqa: E402
from engines.tiny.data import draw_sample  # noqa: E402
from engines.tiny.noise import GROUPS, GroupNoise  # noqa: E402
from rtdecode.decode.engines import OnnxEngine  # noqa: E402
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


def linear_training(folder: Path, *, resume: bool, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    module = torch.nn.Linear(layout.CODE, layout.CODE)
    seen = 0

    def loss(batch: train.Batch, draw: torch.Generator) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == stop_at:
            raise KeyboardInterrupt
        target = batch.codes + 0.1 * torch.randn(batch.codes.shape, generator=draw)
        return (module(batch.codes) - target).square().mean()

    runner = train.StageRunner(folder, seed=1, effort=0.03, resume=resume)
    runner.run("captioner", module, draw_sample(30, 0), 8, 1e-2, loss)
    return module.state_dict()


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_S", 0.0)
    whole = linear_training(tmp_path / "whole", resume=False)
    with pytest.raises(KeyboardInterrupt):
        linear_training(tmp_path / "parts", resume=False, stop_at=20)
    parts = linear_training(tmp_path / "parts", resume=True)
    for name, values in whole.items():
        assert torch.equal(values, parts[name])


def test_a_decoder_moves_the_object_frame_with_the_code() -> None:
    decoder = networks.Decoder()
    geometry = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.6, 0.6], [0.0, 1.0, 0.0, 0.0, 0.6, 0.6]])
    frame = decoder._frame(decoder.grid3, geometry)
    centres = [(frame[i, 0].abs() + frame[i, 1].abs()).flatten().argmin() % 64 for i in range(2)]
    low, high = 0.6, 0.95
    room = 0.5 - 0.5 * (low + high) / 2
    assert int(centres[0]) in (31, 32)
    assert int(centres[1]) == pytest.approx(63.5 * (0.5 + room), abs=1)


@pytest.mark.parametrize("name", ["embedder", "prior", "decoder", "captioner"])
def test_an_exported_stage_computes_what_its_network_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = {
        "embedder": networks.Embedder,
        "prior": networks.Prior,
        "decoder": networks.Decoder,
        "captioner": lambda: networks.Captioner(len(layout.vocabulary())),
    }[name]().eval()
    export.round_to_half(module)
    draw = np.random.default_rng(0)
    tokens = torch.from_numpy(draw.standard_normal((3, layout.TOKENS, layout.CHANNELS)).astype(np.float32))
    inputs = {
        "embedder": {"image": torch.rand(3, 3, 64, 64)},
        "prior": {"tokens": tokens, "r2": torch.rand(3, 2), "category_bias": torch.randn(3, 8)},
    }.get(name, {"tokens": tokens})
    outputs = list(getattr(tiny_stages(), name).outputs)
    export.export_stage(module, inputs, outputs, tmp_path / "stage.onnx")
    engine = OnnxEngine(tmp_path / "stage.onnx", name=name, threads=1)
    with torch.inference_mode():
        expected = module(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    for rows in (3, 1):
        given = engine.run({key: value.numpy()[:rows] for key, value in inputs.items()})
        for output, truth in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(given[output], truth.numpy()[:rows], atol=1e-4)


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
