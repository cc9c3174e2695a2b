"""The generators of MindEye1's pictures against the published numbers, through the import of their files."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import save_file

from engines.importing.drafts import Draft
from engines.importing.image_variation_files import add_picture_generator
from rtdecode.decode.families.mindeye1.mindeye1_description import GeneratorTable
from rtdecode.decode.families.mindeye1.picture_generator import POSTERIOR, START, PictureGenerator, condition_of
from rtdecode.decode.networks.build import load
from rtdecode.decode.networks.image_diffusion import CLIP_L, ClipImage, LatentEncoder
from rtdecode.decode.networks.preprocess import clip_input
from rtdecode.decode.runtime.torch_runner import torch_runner
from rtdecode.decode.sampling.edm import guide
from rtdecode.decode.sampling.noise import key_of
from rtdecode.decode.sampling.unipc import noised, unipc, unipc_alphas_cumprod, unipc_times
from rtdecode.errors import CheckpointError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.statistics import row_cosines
from tests.golden import Golden, close, goldens, said
from tests.published import old_names

SCALE = 0.18215
KINDS = {"me1_vd_sampler": "versatile-diffusion", "me1_variations_sampler": "image-variations"}


def tolerated(golden: Golden, name: str, got: Any) -> None:
    close(golden, name, got, golden.info["tolerance"][name])


def pack_of(golden: Golden, folder: Path) -> EnginePack:
    """Import the golden's networks from a folder as published: a dual UNet, and the old names of attention."""
    state = {key: torch.from_numpy(value) for key, value in golden.state().items()}
    dims = golden.dims
    configs = {
        "unet": {"sample_size": dims["size"], **{k: v for k, v in dims["unet"].items() if k != "note"}},
        "vae": dims["vae"],
        "image_encoder": dims["image_encoder"],
    }
    for name, config in configs.items():
        below = folder / {"unet": "image_unet"}.get(name, name)
        below.mkdir(parents=True)
        (below / "config.json").write_text(json.dumps({"_class_name": "x", **config}))
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        file = "model.safetensors" if name == "image_encoder" else "diffusion_pytorch_model.safetensors"
        save_file(old_names(own) if name == "vae" else own, below / file)
    draft = Draft(kind="mindeye1")
    assert add_picture_generator(draft, str(folder), [])["kind"] == "versatile-diffusion"
    dropped = [key for reasons in draft.dropped.values() for keys in reasons.values() for key in keys]
    assert dropped
    assert all(".transformers.1." in key for key in dropped)
    draft.tables |= {
        "tokens": {"count": dims["image_tokens"], "channels": dims["dim"]},
        "generator": {
            "kind": "versatile-diffusion",
            "steps": dims["steps"],
            "strength": golden.info["strength"],
            "guidance": golden.info["guidance"],
            "samples": dims["samples"],
            "batch": 2,
        },
    }
    draft.seal(folder / "pack", name="golden", licence="none", precision="float32")
    return open_pack(str(folder / "pack"))


@pytest.mark.parametrize("kind", KINDS)
def test_golden_unipc_loop(shared: Path, kind: str) -> None:
    for golden in goldens(shared, kind):
        tensors, info = golden.tensors, golden.info
        table = GeneratorTable(kind=KINDS[kind])  # type: ignore[arg-type]
        prior = tensors["prior_out"].reshape(golden.dims["samples"], golden.dims["image_tokens"], golden.dims["dim"])
        tolerated(golden, "condition", condition_of(prior, table))
        tolerated(golden, "alphas_cumprod", unipc_alphas_cumprod())
        weight = float(said(r"tanh\(x \+ ([\d.]+)\*mean", info["toy_network"]))
        whole, last = unipc_times(golden.dims["steps"]), unipc_times(golden.dims["steps"], info["strength"])
        np.testing.assert_array_equal(whole, tensors["timesteps"])
        np.testing.assert_array_equal(last, tensors["timesteps_img2img"])
        start = noised(SCALE * tensors["vae_sample"], tensors["noise"], int(last[0]))
        tolerated(golden, "x_start", start)
        tokens = tensors["condition"], tensors["uncondition"]
        for prefix, times, begun in (("", last, start), ("full_", whole, tensors["full_start"])):
            seen: list[Any] = []
            found: list[Any] = []
            predict = partial(_guided, tokens, (weight, info["guidance"]), seen, found)
            out = unipc(predict, begun, times)
            tolerated(golden, f"{prefix}out", out)
            tolerated(golden, f"{prefix}states", np.stack([*seen[1:], out]))
            if not prefix:
                tolerated(golden, "eps", np.stack(found))
                tolerated(golden, "decoded", out / SCALE)


def _guided(
    tokens: tuple[Any, Any], scales: tuple[float, float], seen: list[Any], found: list[Any], x: Any, t: int
) -> Any:
    weight, guidance = scales
    wanted, unwanted = (
        0.7 * x + 0.2 * np.tanh(x + weight * one.mean((1, 2))[:, None, None, None] + 0.001 * t) for one in tokens
    )
    seen.append(x)
    found.append(guide(wanted, unwanted, guidance))
    return found[-1]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # the library's own, of numpy
def test_unipc_is_that_of_the_library() -> None:
    scheduler = UniPCMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", final_sigmas_type="sigma_min"
    )
    for steps in (1, 2, 4, 7, 50):
        scheduler.set_timesteps(steps)
        x = expected = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
        for t in scheduler.timesteps:
            expected = scheduler.step((0.5 * expected).tanh() + 0.1, t, expected).prev_sample
        assert unipc_times(steps).tolist() == scheduler.timesteps.tolist()
        found = unipc(lambda x, t: (0.5 * x).tanh() + 0.1, x, unipc_times(steps))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_golden_versatile_diffusion_from_published_files_to_the_pick(shared: Path, tmp_path: Path) -> None:
    for number, golden in enumerate(goldens(shared, "me1_vd_recon")):
        pack = pack_of(golden, tmp_path / str(number))
        tensors = golden.tensors
        coder = load(pack, "generator_coder", device="cpu", dtype=torch.float32)
        mean, deviation = LatentEncoder(coder)(torch.from_numpy(tensors["low_level"]))
        tolerated(golden, "vae_mean", mean)
        tolerated(golden, "vae_logvar", 2 * deviation.log())
        unet = load(pack, "generator", device="cpu", dtype=torch.float32)
        tokens = torch.from_numpy(tensors["unet_tokens"])[:, golden.dims["text_tokens"] :]
        start, times = torch.from_numpy(tensors["x_start"]), tensors["timesteps"]
        told = torch.full((2 * len(start),), int(times[0]))
        noise = unet(torch.cat([start, start]), told, tokens)
        tolerated(golden, "unet_plain", noise)
        tolerated(golden, "unet_dual", noise)

        runner = torch_runner(pack, device="cpu", precision="float32")
        draws = {key_of(7, POSTERIOR): tensors["vae_noise"]}
        draws |= {key_of(7, START, i): one[None] for i, one in enumerate(tensors["noise"])}
        runner = replace(runner, normal=lambda key, shape, draws=draws: torch.from_numpy(draws[key]))
        said_table = pack.description.generator  # type: ignore[attr-defined]
        generator = PictureGenerator(pack, runner, said_table)
        drawn = generator.draw(tensors["prior_out"], tensors["projector"][0], tensors["low_level"][0], seed=7)
        tolerated(golden, "out", drawn.latents)
        tolerated(golden, "pictures", (drawn.pictures / 2 + 0.5).clip(0, 1))
        tolerated(golden, "similarities", drawn.similarities)
        assert drawn.best == int(tensors["best"])

        pictures = torch.from_numpy(tensors["pictures"])
        embedder = load(pack, "embedder", device="cpu", dtype=torch.float32)
        hidden, embeds, _ = embedder(pictures)
        tolerated(golden, "hidden", hidden)
        tolerated(golden, "embeds", embeds)
        tolerated(golden, "pixels_first", clip_input(pictures[:1], embedder.px)[:, :, ::8, ::8])


@torch.no_grad()
def test_golden_pick(shared: Path) -> None:
    for golden in goldens(shared, "me1_pick"):
        dims, tensors = golden.dims, golden.tensors
        small = {"hidden_size": dims["width"], "projection_dim": dims["dim"], "num_hidden_layers": 1}
        network = ClipImage(
            {**CLIP_L, **small, "num_attention_heads": 1, "intermediate_size": 8, "patch_size": 112}
        ).eval()
        state = {f"clip.{key}": torch.from_numpy(value) for key, value in golden.state().items()}
        assert not network.load_state_dict(state, strict=False).unexpected_keys
        embeds = network.of_hidden(torch.from_numpy(tensors["hidden"]))[1].numpy()
        tolerated(golden, "embeds", embeds)
        found = row_cosines(tensors["projector"].reshape(-1), embeds.reshape(len(embeds), -1))
        tolerated(golden, "similarities", found)
        assert int(np.nanargmax(found)) == int(tensors["best"])
        found[int(tensors["best"])] = np.nan
        assert int(np.nanargmax(found)) == int(tensors["second"])


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected image_unet or unet"):
        add_picture_generator(Draft(kind="mindeye1"), str(tmp_path), [])
