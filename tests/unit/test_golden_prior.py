"""The prior against the published code's own numbers: network, schedule, sampling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtdecode.decode.networks.prior import PriorNetwork, PriorShape
from rtdecode.decode.sampling.ddpm import count_draws, ddim_times, sample_prior
from rtdecode.decode.sampling.schedule import cosine_schedule
from tests.golden import FORWARD, LOOP, Golden, close, goldens, numbered, said


def prior_of(golden: Golden, prefix: str = "diffusion_prior.net.") -> PriorNetwork:
    """The network with every published key of a golden, no more and no less."""
    dims = golden.dims
    shape = PriorShape(
        tokens=dims["num_tokens"],
        **{name: dims[name] for name in ("dim", "depth", "heads", "dim_head", "timesteps")},
    )
    network = PriorNetwork(shape).eval()
    state = {key[len(prefix) :]: torch.from_numpy(v) for key, v in golden.state().items() if key.startswith(prefix)}
    network.load_state_dict(state, strict=True)
    return network


def predictor(network: PriorNetwork, condition: torch.Tensor, cond_scale: float = 1.0) -> Callable[[Any, int], Any]:
    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return network.guided(x, torch.full((len(x),), t), condition, cond_scale=cond_scale)

    return predict


def draws_of(golden: Golden, count: int) -> list[torch.Tensor]:
    """First noise draws of a golden that describes them instead of holding them."""
    seed, shape = int(said(r"RandomState\((\d+)\s*\+", golden.info["noise"])), golden.tensors["cond"].shape
    draws = (np.random.RandomState(seed + i).standard_normal(shape) for i in range(count))
    return [torch.from_numpy(draw.astype(np.float32)) for draw in draws]


@torch.no_grad()
def test_golden_prior_forward(shared: Path) -> None:
    for golden in goldens(shared, "me2_prior_forward"):
        network = prior_of(golden)
        x, t, condition = (torch.from_numpy(golden.tensors[name]) for name in ("x_t", "t", "cond"))
        tokens = network.sequence(x, t, condition)
        transformer = network.causal_transformer
        bias = transformer.rel_pos_bias(tokens.shape[1])
        attention, feed_forward = transformer.layers[0]
        attended = attention(tokens, bias)
        close(golden, "time_embed", network.to_time_embeds(t)[:, None], FORWARD)
        close(golden, "tokens_in", tokens, FORWARD)
        close(golden, "rel_pos_bias", bias, FORWARD)
        close(golden, "layer0_attn_out", attended, FORWARD)
        close(golden, "layer0_ff_out", feed_forward(tokens + attended), FORWARD)
        close(golden, "pred", network(x, t, condition), FORWARD)
        close(golden, "pred_null", network.null(x, t, condition), FORWARD)
        [name] = (name for name in golden.tensors if name.startswith("pred_cond_scale"))
        scale = float(name.removeprefix("pred_cond_scale"))
        close(golden, name, network.guided(x, t, condition, cond_scale=scale), FORWARD)


def test_golden_prior_schedule(shared: Path) -> None:
    prefix = "diffusion_prior.noise_scheduler."
    for golden in goldens(shared, "me2_noise_schedule"):
        state = golden.state()
        tables = cosine_schedule(len(state[f"{prefix}betas"])).tables()
        assert {prefix + name for name in tables} == state.keys()
        for name, table in tables.items():
            close(golden, f"sd.{prefix}{name}", table, 1e-6 * max(1.0, float(np.abs(table).max())))


@torch.no_grad()
def test_golden_prior_sampling(shared: Path) -> None:
    for golden in goldens(shared, "me2_prior_sample"):
        weights = golden.weights()
        timesteps = weights.dims["timesteps"]
        noise = torch.from_numpy(golden.tensors["noise"])
        predict = predictor(prior_of(weights), torch.from_numpy(golden.tensors["cond"]), golden.info["cond_scale"])
        calls: list[tuple[int, torch.Tensor]] = []

        def recorded(
            x: torch.Tensor,
            t: int,
            predict: Callable[[Any, int], Any] = predict,
            calls: list[tuple[int, torch.Tensor]] = calls,
        ) -> torch.Tensor:
            calls.append((t, predict(x, t)))
            return calls[-1][1]

        steps = golden.info["timesteps_arg"] or timesteps
        out = sample_prior(recorded, list(noise), cosine_schedule(timesteps), steps=steps)
        assert [t for t, _ in calls] == golden.info["network_timesteps"]
        close(golden, "out", out, LOOP)
        close(golden, "x0_first", calls[0][1], LOOP)
        close(golden, "x0_mid", calls[len(calls) // 2][1], LOOP)


@torch.no_grad()
def test_golden_prior_of_mindeye1(shared: Path) -> None:
    for golden in goldens(shared, "me1_prior"):
        network = prior_of(golden, prefix="")
        condition = torch.from_numpy(golden.tensors["cond"])
        rotary = golden.state()["causal_transformer.layers.0.0.rotary_emb.freqs"]
        assert rotary[0] == 1.0
        schedule = cosine_schedule(golden.dims["timesteps"])
        predict = predictor(network, condition)
        for name, t in numbered(golden, r"pred_t(\d+)"):
            close(golden, name, predict(condition * 0.5, t), FORWARD)
        made = {}
        for name, steps in numbered(golden, r"sample(\d+)"):
            noise = draws_of(golden, count_draws(schedule.timesteps, steps))
            made[steps] = sample_prior(predict, noise, schedule, steps=steps) / golden.dims["dim"] ** 0.5
            close(golden, name, made[steps], LOOP)
        full = made[max(made)]
        close(golden, "vd_embedding", full / (full[:, :1].norm(dim=-1, keepdim=True) + 1e-6), LOOP)


def test_golden_loops_run_alike_on_numpy_and_torch(shared: Path) -> None:
    for golden in goldens(shared, "me2_prior_sample"):
        schedule = cosine_schedule(golden.weights().dims["timesteps"])
        steps = golden.info["timesteps_arg"] or schedule.timesteps

        def predict(x: Any, t: int, timesteps: int = schedule.timesteps) -> Any:
            return x * (0.9 - t / (2 * timesteps))

        noise = golden.tensors["noise"]
        got = sample_prior(predict, list(noise), schedule, steps=steps)
        want = sample_prior(predict, list(torch.from_numpy(noise)), schedule, steps=steps)
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-6)


def test_levels_are_counted_as_torch_counts() -> None:
    for timesteps in (10, 100, 250, 1000):
        for steps in range(2, timesteps + 1):
            levels = [int(level) for level in torch.linspace(-1, timesteps, steps + 1)[:-1].tolist()][::-1]
            assert ddim_times(timesteps, steps) == levels
            if steps < timesteps:
                # The start, and fresh noise wherever the next level is above 0.
                assert count_draws(timesteps, steps) == 1 + sum(level > 0 for level in levels[1:])
