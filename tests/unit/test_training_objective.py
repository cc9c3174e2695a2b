"""MindEye2's objective on several participants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("diffusers")

from engines.training.loop import Plan, fit  # noqa: E402
from engines.training.losses import draw_mix  # noqa: E402
from engines.training.objective import MindEye2Objective, Weights  # noqa: E402
from engines.training.shared_model import SharedModel, Trials  # noqa: E402
from rtdecode.decode.networks.backbone import BackboneShape  # noqa: E402
from rtdecode.decode.networks.prior import PriorNetwork, PriorShape  # noqa: E402
from rtdecode.decode.sampling.schedule import cosine_schedule  # noqa: E402
from rtdecode.errors import TrainingError  # noqa: E402

TOKENS, DIM = 3, 16
VOXELS = (20, 30)


def shared(*, low_level: bool = False) -> SharedModel:
    torch.manual_seed(0)
    shape = BackboneShape(hidden=24, tokens=TOKENS, dim=DIM, blocks=1, low_level=low_level)
    prior = PriorShape(tokens=TOKENS, dim=DIM, depth=1, heads=2, dim_head=16, timesteps=20)
    return SharedModel(VOXELS, shape, PriorNetwork(prior))


def world(seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens of 40 pictures, and what they evoke in two brains."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(40, TOKENS, DIM, generator=draw)
    mixing = [torch.randn(TOKENS * DIM, v, generator=draw) / 7 for v in VOXELS]
    return tokens, [tokens.flatten(1) @ m for m in mixing]


def trials(draw: torch.Generator, n: int = 10, *, low_level: bool = False) -> list[Trials]:
    tokens, evoked = world()
    out = []
    for person, responses in enumerate(evoked):
        rows = torch.randperm(len(tokens), generator=draw)[:n]
        noise = 0.3 * torch.randn(n, responses.shape[1], generator=draw)
        low = (torch.randn(n, 4, 28, 28), torch.randn(n, 49, 512), torch.randn(n, 49, 512)) if low_level else [None] * 3
        out.append(Trials(person, responses[rows] + noise, tokens[rows], *low, rows))
    return out


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_partners_of_the_second_participant_are_sought_among_its_own_trials() -> None:
    model = shared().eval()
    weights = Weights(prior=0.0, low=0.0)
    batch = trials(torch.Generator().manual_seed(1))
    loss = MindEye2Objective(model, cosine_schedule(20), weights)(batch, torch.Generator().manual_seed(5), 0.1)
    draw = torch.Generator().manual_seed(5)
    ours, targets = [], np.zeros((20, 20))
    for person, part in enumerate(batch):
        mix = draw_mix(10, generator=draw)
        share = mix.betas[:, None]
        mixed = torch.where(mix.select[:, None], part.betas * share + part.betas[mix.perm] * (1 - share), part.betas)
        with torch.no_grad():
            ours.append(model.backbone(model.ridge(mixed, person)).retrieval.flatten(1).numpy())
        for i in range(10):
            targets[10 * person + i, 10 * person + i] = mix.betas[i]
            targets[10 * person + i, 10 * person + int(mix.perm[i])] = 1 - mix.betas[i]
    a, b = np.concatenate(ours), torch.cat([t.tokens for t in batch]).flatten(1).numpy()
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    logits = a @ b.T / 0.006
    expected = -(targets * log_softmax(logits)).sum(1).mean() / 2
    expected -= (targets.T * log_softmax(logits.T)).sum(1).mean() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_model_trained_on_two_brains_finds_the_picture_in_both(tmp_path: Path) -> None:
    model = shared()
    objective = MindEye2Objective(model, cosine_schedule(20), Weights(anchor=30.0))
    plan = Plan(name="shared", steps=250, rate=5e-3, warm_up=20)
    fitted = fit(objective, lambda draw: trials(draw), plan, folder=tmp_path, resume=False)
    assert fitted.skipped == 0
    model.eval()
    tokens, _ = world()
    for person, part in enumerate(trials(torch.Generator().manual_seed(99), n=40)):
        with torch.no_grad():
            out = model.backbone(model.ridge(part.betas, person))
        found = (
            torch.nn.functional.normalize(out.retrieval.flatten(1)) @ torch.nn.functional.normalize(tokens.flatten(1)).T
        )
        assert float((found.argmax(1) == part.rows).float().mean()) > 0.5  # chance is 1 in 40
        assert float((out.tokens - part.tokens).square().mean()) < 0.8 * float(part.tokens.square().mean())


def test_large_values_in_half_precision_give_a_finite_loss() -> None:
    objective = MindEye2Objective(shared(), cosine_schedule(20), Weights(), torch.bfloat16)
    batch = [part._replace(betas=part.betas * 1e3) for part in trials(torch.Generator().manual_seed(1))]
    for progress in (0.0, 0.9):
        loss = objective(batch, torch.Generator().manual_seed(2), progress)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


def test_the_low_level_branch_is_trained_where_its_targets_are_given() -> None:
    model = shared(low_level=True)
    objective = MindEye2Objective(model, cosine_schedule(20), Weights(prior=0.0, contrastive=0.0))
    objective(trials(torch.Generator().manual_seed(1), low_level=True), torch.Generator(), 0.9).backward()
    assert float(model.backbone.blin1.weight.grad.abs().sum()) > 0
    with pytest.raises(TrainingError, match="low-level branch needs"):
        objective(trials(torch.Generator().manual_seed(1)), torch.Generator(), 0.9)


def test_a_single_trial_of_a_participant_is_refused() -> None:
    objective = MindEye2Objective(shared(), cosine_schedule(20))
    with pytest.raises(TrainingError, match="at least 2 trials"):
        objective(trials(torch.Generator().manual_seed(1), n=1), torch.Generator(), 0.0)
