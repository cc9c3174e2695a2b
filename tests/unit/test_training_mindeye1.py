"""Training of MindEye1: the losses against plain arithmetic, and a small network that learns and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engines.training.losses import draw_keep, draw_mix, mix_voxels
from engines.training.mindeye1_objective import LowLevelObjective, MindEye1Objective, MindEye1Weights, SeenTrials
from engines.training.mindeye1_training import train_mindeye1
from rtdecode.__main__ import main
from rtdecode.decode.families.mindeye1 import load_mindeye1
from rtdecode.decode.networks.brain import BrainNetwork, BrainShape, LowLevel
from rtdecode.decode.networks.prior import PriorNetwork, PriorShape
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.errors import TrainingError
from rtdecode.packs import open_pack

VOXELS, TOKENS, DIM = 40, 3, 8
SIZES = {"hidden": 128, "projector": 64, "blocks": 1, "low_level": False, "prior_depth": 1, "prior_heads": 1}
SIZES |= {"prior_dim_head": 16, "timesteps": 12}


def trials(n: int = 6) -> SeenTrials:
    draw = torch.Generator().manual_seed(1)
    return SeenTrials(betas=torch.randn(n, VOXELS, generator=draw), tokens=torch.randn(n, TOKENS, DIM, generator=draw))


def networks() -> tuple[BrainNetwork, PriorNetwork]:
    torch.manual_seed(0)
    brain = BrainNetwork(BrainShape(voxels=VOXELS, hidden=16, tokens=TOKENS, dim=DIM, projector=16, blocks=1))
    prior = PriorNetwork(PriorShape(tokens=TOKENS, dim=DIM, depth=1, heads=1, dim_head=16, timesteps=12))
    return brain.eval(), prior.eval()


def unit(tokens: Tensor) -> Tensor:
    flat = tokens.flatten(1)
    return flat / flat.norm(dim=1, keepdim=True)


def log_share(logits: Tensor) -> Tensor:
    return logits - torch.logsumexp(logits, 1, keepdim=True)


@pytest.mark.parametrize("contrast", ["bimixco+softclip", "bimixco", "mixco", "softclip", "clip", "infonce"])
@pytest.mark.parametrize("progress", [0.1, 0.665])
def test_the_contrastive_loss_is_the_one_that_was_asked_for(contrast: Any, progress: float) -> None:
    brain, prior = networks()
    batch, weights = trials(), MindEye1Weights(contrast=contrast, prior=0)
    objective = MindEye1Objective(brain, prior, cosine_schedule(12), weights)
    found = objective(batch, torch.Generator().manual_seed(3), progress)
    mixed = contrast in ("bimixco", "mixco") or (contrast == "bimixco+softclip" and progress < 0.33)
    mix = draw_mix(6, generator=torch.Generator().manual_seed(3), device="cpu")
    _, projected = brain(mix_voxels(batch.betas, mix) if mixed else batch.betas)
    ours, theirs = unit(projected), unit(batch.tokens)  # type: ignore[arg-type]
    shares, temperature = torch.eye(6), 0.006
    if mixed:
        shares = torch.diag(mix.betas)
        for i in range(6):
            shares[i, mix.perm[i]] = 1 - mix.betas[i]
    elif "softclip" in contrast:
        begun = 0.33 if contrast == "bimixco+softclip" else 0.0
        done = (progress - begun) / (1 - begun)
        temperature = 0.0075 + (0.004 - 0.0075) * 0.5 * (1 + np.cos(np.pi * done))
        shares = (theirs @ theirs.T / temperature).softmax(1)
    logits = ours @ theirs.T / temperature
    there = -(log_share(logits) * shares).sum(1).mean()
    back = -(log_share(logits.T) * (shares.T if mixed else shares)).sum(1).mean()
    right = there if contrast in ("mixco", "infonce") else (there + back) / 2
    assert found.item() == pytest.approx(right.item(), rel=1e-4)


def test_the_prior_learns_tokens_times_the_root_of_their_width() -> None:
    brain, prior = networks()
    batch, schedule = trials(), cosine_schedule(12)
    without, with_prior = (
        MindEye1Objective(brain, prior, schedule, MindEye1Weights(contrast="clip", prior=weight))(
            batch, torch.Generator().manual_seed(3), 0.5
        )
        for weight in (0.0, 0.3)
    )
    draw = torch.Generator().manual_seed(3)
    t = torch.randint(12, (6,), generator=draw)
    noise = torch.randn(6, TOKENS, DIM, generator=draw)
    keep = [draw_keep(6, generator=draw) for _ in range(2)]
    clean = batch.tokens * DIM**0.5  # type: ignore[operator]
    signal, spread = (
        torch.from_numpy(one)[t][:, None, None]
        for one in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
    )
    tokens, _ = brain(batch.betas)
    made = prior(signal * clean + spread * noise, t, tokens, keep_condition=keep[0], keep_image=keep[1])
    assert (with_prior - without).item() == pytest.approx(0.3 * (made - clean).square().mean().item(), rel=1e-4)


def test_the_low_level_is_judged_by_its_latent_and_by_the_teacher() -> None:
    torch.manual_seed(0)
    network = LowLevel(VOXELS, 8, blocks=1).eval()
    batch = SeenTrials(
        trials(4).betas,
        latent=torch.randn(4, 4, 64, 64),
        teacher=torch.randn(4, 256, 512),
        teacher_augmented=torch.randn(4, 256, 512),
    )
    latent, features = network(batch.betas)
    student, teacher, augmented = (unit(one) for one in (features, batch.teacher, batch.teacher_augmented))
    wanted, got = (one @ augmented.T / 0.2 for one in (teacher, student))
    ways = [-(log_share(a) * b.softmax(1)).sum(1).mean() for a, b in ((got, wanted), (got.T, wanted.T))]
    right = (latent - batch.latent).abs().mean() + 0.1 * (ways[0] + ways[1]) / 2
    found = LowLevelObjective(network, MindEye1Weights())(batch, torch.Generator(), 0.0)
    assert found.item() == pytest.approx(right.item(), rel=1e-4)


def test_layers_are_residual_or_not() -> None:
    shape = BrainShape(voxels=VOXELS, hidden=16, tokens=TOKENS, dim=DIM, projector=16, blocks=1, skips=False)
    torch.manual_seed(0)
    brain = BrainNetwork(shape).eval()
    betas = trials().betas
    np.testing.assert_allclose(
        brain(betas)[0].flatten(1).detach(), brain.lin1(brain.mlp[0](brain.lin0(betas))).detach(), atol=1e-6
    )


def write_data(folder: Path) -> Path:
    """A participant whose betas hold the tokens of what they saw; half of the trials are kept for the judgement."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, TOKENS, DIM, generator=draw)
    mixing = torch.randn(TOKENS * DIM, VOXELS, generator=draw) / 5
    rows = torch.arange(160) % 40
    betas = tokens.flatten(1)[rows] @ mixing + 0.3 * torch.randn(160, VOXELS, generator=draw)
    save_file({"tokens": tokens}, folder / "pictures.safetensors")
    save_file({"betas": betas[:120].contiguous(), "picture": rows[:120].contiguous()}, folder / "own.safetensors")
    save_file({"mean": torch.zeros(VOXELS), "scale": torch.ones(VOXELS)}, folder / "scaling.safetensors")
    save_file({"betas": betas[120:].contiguous()}, folder / "apart.safetensors")
    return write_settings(folder)


def write_settings(folder: Path, **changed: Any) -> Path:
    content = {"kind": "mindeye1", "pictures": "pictures.safetensors", "participant": "own.safetensors"}
    more = {"scaling": "scaling.safetensors", "steps": 120, "batch": 24, "rate": 3e-3, "ema": 0.9, "model": SIZES}
    (folder / "training.toml").write_bytes(tomli_w.dumps({**content, **more, **changed}).encode())
    return folder / "training.toml"


def test_a_small_network_learns_and_its_pack_decodes(tmp_path: Path) -> None:
    settings = write_data(tmp_path)
    out = tmp_path / "pack"
    assert main(["engines", "train", str(settings), "--out", str(out), "--licence", "none"]) == 0
    pack = open_pack(str(out))
    assert pack.description.kind == "mindeye1"
    assert set(pack.tensors("scaling.safetensors")) == {"mean", "scale"}
    mind = load_mindeye1(pack)
    betas = load_file(tmp_path / "apart.safetensors")["betas"].numpy()
    tokens = load_file(tmp_path / "pictures.safetensors")["tokens"]
    found = torch.from_numpy(np.stack([mind.embed(one)[1] for one in betas]))
    likeness = unit(found) @ unit(tokens).T
    right = float((likeness.argmax(1) == torch.arange(40)).float().mean())
    assert right > 0.3  # chance is 1 / 40
    clean = unit(torch.from_numpy(np.stack([mind.decode(one, seed=1).tokens for one in betas[:20]])))
    assert float((clean * unit(tokens[:20])).sum(1).mean()) > 0


def test_a_resumed_training_gives_what_an_unbroken_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.training import loop

    write_data(tmp_path)
    settings = write_settings(tmp_path, steps=6, batch=4)
    whole, _ = train_mindeye1(settings, tmp_path / "a" / "pack", licence="none", resume=False)
    steps, step = iter(range(100)), loop._step

    def dying(*given: Any) -> bool:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(loop, "_step", dying)
    monkeypatch.setattr("engines.training.mindeye1_training.Plan", lambda **said: loop.Plan(**said, save_every_s=-1))
    with pytest.raises(KeyboardInterrupt):
        train_mindeye1(settings, tmp_path / "b" / "pack", licence="none", resume=False)
    again, _ = train_mindeye1(settings, tmp_path / "b" / "pack", licence="none", resume=True)
    assert again == whole
    with pytest.raises(TrainingError, match="checkpoint of another training"):
        train_mindeye1(write_settings(tmp_path, steps=7), tmp_path / "b" / "pack", licence="none", resume=True)


def test_what_cannot_be_trained_is_told(tmp_path: Path) -> None:
    write_data(tmp_path)
    with pytest.raises(TrainingError, match="contrast"):
        train_mindeye1(
            write_settings(tmp_path, weights={"contrast": "other"}), tmp_path / "x", licence="none", resume=False
        )
    with pytest.raises(TrainingError, match="latent"):
        train_mindeye1(
            write_settings(tmp_path, model={**SIZES, "low_level": True}), tmp_path / "x", licence="none", resume=False
        )
