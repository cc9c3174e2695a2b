"""Stable Cascade and the very deep VAE against the published numbers, through the import of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import save_file
from torch import Tensor

from engines.importing import cascade_files
from engines.importing.drafts import Draft
from rtdecode.decode.families.mirage_imagery.cascade_generator import (
    DIFFUSE,
    STAGE_B,
    STAGE_C,
    START_B,
    CascadeGenerator,
    mixed_guides,
)
from rtdecode.decode.families.mirage_imagery.low_level_picture import as_bytes, enhanced, sample_mixture
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import CascadeTable
from rtdecode.decode.networks.build import empty, load
from rtdecode.decode.networks.vdvae import Vdvae, VdvaeShape, encoder_input
from rtdecode.decode.runtime.torch_runner import torch_runner
from rtdecode.decode.sampling.gdf import GdfSchedule, diffused, gdf_schedule, rescaled_guidance, sample_gdf
from rtdecode.decode.sampling.noise import key_of
from rtdecode.packs import EnginePack, open_pack
from tests.golden import FORWARD, LOOP, Golden, close, goldens, read, said

BLOCKS = {"C": "SDCascadeResBlock", "T": "SDCascadeTimestepBlock", "A": "SDCascadeAttnBlock"}


def tolerance(golden: Golden, name: str) -> float:
    """What the description allows, as a number or as a share of the largest value."""
    told = golden.info["tolerance"]
    value = told.get(name, next((told[key] for key in told if key.endswith("*") and name.startswith(key[:-1])), None))
    if isinstance(value, str):
        share = float(said(r"([\d.e-]+)", value))
        largest = np.abs(golden.tensors[name]).max() if "largest" in value else 1.0
        return float(share * largest)
    assert value is not None, f"{golden.path}: no tolerance of {name}"
    return float(value)


def tolerated(golden: Golden, name: str, got: Any) -> None:
    close(golden, name, got, tolerance(golden, name))


def filled(golden: Golden) -> dict[str, Tensor]:
    """Weights that the golden describes, with its rules for what batch norms keep."""
    state = golden.state()
    for k, (key, shape) in enumerate(sorted(golden.info["keys"].items())):
        if key.endswith("running_var"):
            state[key] = np.exp(0.1 * np.random.RandomState(golden.info["seed"] + k).standard_normal(shape)).astype(
                "f4"
            )
        elif key.endswith("num_batches_tracked"):
            state[key] = np.asarray(0, np.int64)
    return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


def write(folder: Path, golden: Golden, config: dict[str, Any] | None) -> str:
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    save_file(filled(golden), folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def unet_config(dims: dict[str, Any]) -> dict[str, Any]:
    """Sizes in the words of diffusers."""
    latent = dims["latent"][0]
    kinds = {
        "in_channels": latent,
        "out_channels": latent,
        "timestep_ratio_embedding_dim": dims["c_r"],
        "conditioning_dim": dims["c_cond"],
        "block_out_channels": dims["c_hidden"],
        "num_attention_heads": [max(heads, 0) for heads in dims["nhead"]],
        "down_num_layers_per_block": dims["blocks"][0],
        "up_num_layers_per_block": dims["blocks"][1],
        "down_blocks_repeat_mappers": dims["block_repeat"][0],
        "up_blocks_repeat_mappers": dims["block_repeat"][1],
        "block_types_per_layer": [[BLOCKS[letter] for letter in level] for level in dims["level_config"]],
        "clip_seq": dims["c_clip_seq"],
        "dropout": dims["dropout"],
    }
    if "c_clip_img" in dims:
        return kinds | {
            "patch_size": 1,
            "clip_text_in_channels": dims["c_clip_text"],
            "clip_text_pooled_in_channels": dims["c_clip_text_pooled"],
            "clip_image_in_channels": dims["c_clip_img"],
            "timestep_conditioning_type": ["sca", "crp"],
            "switch_level": dims["switch_level"],
        }
    return kinds | {
        "patch_size": 2,
        "clip_text_pooled_in_channels": dims["c_clip"],
        "effnet_in_channels": 16,
        "pixel_mapper_in_channels": 3,
        "timestep_conditioning_type": ["sca"],
    }


def sealed(draft: Draft, folder: Path) -> EnginePack:
    draft.tables["tokens"] = {"count": 1, "channels": 1}
    draft.seal(folder, name="golden", licence="none", precision="float32")
    return open_pack(str(folder))


def test_golden_gdf(shared: Path) -> None:
    for golden in goldens(shared, "sc_gdf"):
        t = golden.tensors
        strength, share, guidance, shift, rho = (
            float(said(pattern, golden.info["ref"]))
            for pattern in (
                r"\(strength ([\d.]+)",
                r"textstrength ([\d.]+)",
                r"cfg_c ([\d.]+)",
                r"shift_c ([\d.]+)",
                r"cfg_rho ([\d.]+)",
            )
        )
        schedule = gdf_schedule(len(t["step_noise"]), start=strength, shift=shift)
        close(golden, "logSNR", schedule.log_snr, FORWARD)
        close(golden, "noise_cond", schedule.r, FORWARD)
        close(golden, "a", schedule.signal, FORWARD)
        close(golden, "b", schedule.noise, FORWARD)
        start = diffused(t["effnet_latents"], t["diffuse_noise"], strength)
        close(golden, "x_init", start, FORWARD)
        mixed = [
            mixed_guides(t["c_i"][i], t["c_t"][i], t["uncond_text"][i], t["uncond_pooled"][i], share)
            for i in range(len(t["c_i"]))
        ]
        text, image = np.concatenate([one.text for one in mixed]), np.concatenate([one.image for one in mixed])
        close(golden, "mixed_clip_text", text, FORWARD)
        close(golden, "mixed_clip_img", image, FORWARD)

        def toy(x: Any, text: Any, image: Any, r: Any, t: Any = t) -> Any:
            told = text.mean((1, 2)) - t["uncond_pooled"].mean((1, 2)) + 2 * image.mean((1, 2)) + 0.5 * r
            return np.tanh(0.8 * x + told[:, None, None, None].astype(np.float32))

        clean: list[Any] = []
        predict = partial(_guided, toy, (text, image), t["uncond_text"], schedule, (guidance, rho), clean)
        close(golden, "x0_last", sample_gdf(predict, start, list(t["step_noise"]), schedule), LOOP)
        close(golden, "x0_first", clean[0], LOOP)


def _guided(
    toy: Callable[..., Any],
    wanted: tuple[Any, Any],
    empty_text: Any,
    schedule: GdfSchedule,
    scale: tuple[float, float],
    clean: list[Any],
    x: Any,
    r: Any,
) -> Any:
    text, image = wanted
    found = rescaled_guidance(toy(x, text, image, r), toy(x, empty_text, image * 0, r), *scale)
    clean.append((x - found * schedule.noise[len(clean)]) / schedule.signal[len(clean)])
    return found


@torch.no_grad()
def test_golden_stages_in_one_chain(shared: Path, tmp_path: Path) -> None:
    """C, B and A of one set of weights, each fed what the one before gave."""
    for number, c in enumerate(goldens(shared, "sc_stage_c")):
        b, a = (read(c.path.with_name(c.path.name.replace("stage_c", f"stage_{letter}"))) for letter in "ba")
        draft, folder = Draft(kind="mirage-imagery"), tmp_path / str(number)
        side_c, side_b = c.dims["latent"][1], b.dims["latent"][1]
        cascade_files.add_stage_c(
            draft, write(folder / "c", c, unet_config(c.dims)), [], side=side_c, text=c.dims["text_tokens"]
        )
        cascade_files.add_stage_b(draft, write(folder / "b", b, unet_config(b.dims)), [], side=side_b, coarse=side_c)
        sizes_a = {
            "levels": a.dims["levels"],
            "bottleneck_blocks": a.dims["bottleneck_blocks"],
            "embed_dim": a.dims["c_hidden"],
            "latent_channels": a.dims["c_latent"],
            "num_vq_embeddings": a.dims["codebook_size"],
            "scale_factor": a.dims["scale_factor"],
        }
        cascade_files.add_stage_a(draft, write(folder / "a", a, sizes_a), [], side=side_b)
        pack = sealed(draft, folder / "pack")
        of_c, of_b = c.info["settings"], b.info["settings"]
        table = CascadeTable(
            steps_c=of_c["num_steps_c"],
            strength=of_c["strength"],
            text_share=of_c["textstrength"],
            guidance_c=of_c["cfg"],
            shift_c=of_c["shift"],
            rescale=of_c["cfg_rho"],
            steps_b=of_b["num_steps_b"],
            guidance_b=of_b["cfg"],
            shift_b=of_b["shift"],
            samples=c.dims["samples"],
        )
        assert of_b["cfg_rho"] == of_c["cfg_rho"]
        draws = {key_of(5, DIFFUSE): c.tensors["diffuse_noise"], key_of(5, START_B): b.tensors["init_noise"]}
        for stream, golden in ((STAGE_C, c), (STAGE_B, b)):
            draws |= {key_of(5, stream, i): one for i, one in enumerate(golden.tensors["step_noise"])}
        calls: dict[str, list[tuple[Any, Any]]] = {"stage_c": [], "stage_b": [], "stage_a": []}
        plain = torch_runner(pack, device="cpu", precision="float32")
        runner = replace(
            plain,
            normal=lambda key, _, draws=draws: torch.from_numpy(draws[key]),
            open=lambda name, plain=plain, calls=calls: recorded(plain.open(name), calls[name]),
        )
        generator = CascadeGenerator(pack, runner, table)
        for golden, schedule in ((c, generator.schedule_c), (b, generator.schedule_b)):
            assert schedule is not None
            tolerated(golden, "noise_cond", schedule.r[: schedule.steps])
        # The last bit of r depends on the machine's arc cosine, and the tolerances are for this r.
        generator = generator.with_schedules(told(generator.schedule_c, c), told(generator.schedule_b, b))
        t = c.tensors
        guides = mixed_guides(t["c_i"], t["c_t"], t["uncond_text"][0], t["uncond_pooled"][0], table.text_share)
        coarse = generator.coarse(guides, torch.from_numpy(t["effnet_latents"]), table.samples, seed=5)
        given, found = calls["stage_c"][0]
        for name, key in (("clip_text", "text"), ("clip_text_pooled", "pooled"), ("clip_img", "image")):
            close(c, name, given[key], FORWARD)
        tolerated(c, "x_init", given["x"][: table.samples])
        tolerated(c, "network_out", found["noise"])
        tolerated(c, "sampled_c", coarse)
        fine = generator.fine(coarse, guides, seed=5)
        tolerated(b, "network_out", calls["stage_b"][0][1]["noise"])
        tolerated(b, "sampled_b", fine)
        pictures = generator.picture(fine)
        tolerated(a, "decoded", pictures)
        close(a, "pictures", pictures.clip(0, 1), tolerance(a, "decoded"))
        stage_a = load(pack, "stage_a", device="cpu", dtype=torch.float32)
        tolerated(a, "decoded_small", stage_a(torch.from_numpy(a.tensors["latent_small"])))
        tolerated(a, "encoded", stage_a.encode(torch.from_numpy(a.tensors["image"])))


def recorded(compute: Callable[[Any], Any], calls: list[tuple[Any, Any]]) -> Callable[[Any], Any]:
    def run(values: Any) -> Any:
        found = compute(values)
        calls.append((values, found))
        return found

    return run


def told(schedule: GdfSchedule | None, golden: Golden) -> GdfSchedule:
    assert schedule is not None
    return replace(schedule, r=np.append(golden.tensors["noise_cond"], schedule.r[-1]))


@torch.no_grad()
def test_golden_effnet(shared: Path, tmp_path: Path) -> None:
    for number, golden in enumerate(goldens(shared, "sc_effnet")):
        draft = Draft(kind="mirage-imagery")
        cascade_files.add_effnet(draft, write(tmp_path / f"{number}", golden, None), [])
        assert draft.stages["effnet"].sizes == {"channels": golden.dims["c_latent"]}
        network = load(sealed(draft, tmp_path / f"pack{number}"), "effnet", device="cpu", dtype=torch.float32)
        assert sum(p.numel() for p in network.parameters()) == golden.dims["parameters"]
        x = torch.from_numpy(golden.tensors["image"])
        close(golden, "normalised", network.normalised(x), FORWARD)
        tolerated(golden, "latent", network(x))
        x = network.normalised(x)
        for i, block in enumerate(network.backbone):
            x = block(x)
            tolerated(golden, f"feature_{i}_mean", x.mean((2, 3)))
        tolerated(golden, "feature_last", x[:, : golden.tensors["feature_last"].shape[1]])


@torch.no_grad()
def test_golden_vdvae(shared: Path, tmp_path: Path) -> None:
    for number, golden in enumerate(goldens(shared, "mirage_vdvae")):
        t, dims = golden.tensors, golden.dims
        draft = Draft(kind="mirage-imagery")
        names = {"given_layers": "given"}
        config = {names.get(name, name): value for name, value in dims.items()}
        cascade_files.add_vdvae(draft, write(tmp_path / f"{number}", golden, config), [])
        network = load(sealed(draft, tmp_path / f"pack{number}"), "vdvae", device="cpu", dtype=torch.float32)
        shape = network.shape
        assert shape.sizes() == dims["latent_sizes"]
        assert (shape.given_size, len(shape.layers())) == (dims["given_size"], dims["layers"])
        flat, noise = torch.from_numpy(t["flat"]), torch.from_numpy(t["decoder_noise"])
        tolerated(golden, "px_z", network.features(flat, noise))
        logits = network(flat, noise).numpy()
        tolerated(golden, "logits", logits)
        colours = sample_mixture(t["logits"], t["mixture_uniform"], t["logistic_uniform"])
        tolerated(golden, "continuous", colours)
        edge = np.abs((t["continuous"] + 1) * 127.5 - np.rint((t["continuous"] + 1) * 127.5)) < 1e-3
        differs = np.abs(as_bytes(colours).astype(int) - t["picture"].astype(int))
        assert not differs[~edge].any()
        assert differs.max() <= 1
        tolerated(golden, "px_z_all", network.features(torch.from_numpy(t["all_latents"]), noise))
        pictures = torch.from_numpy(t["encoder_picture"])
        tolerated(golden, "encoder_input", encoder_input(pictures))
        for px, seen in network.encoder(encoder_input(pictures).permute(0, 3, 1, 2)).items():
            tolerated(golden, f"activation_{px}", seen)
        latents, mean, log_sigma = network.posterior(pictures, torch.from_numpy(t["encoder_noise"]))
        tolerated(golden, "encoder_mean", mean)
        tolerated(golden, "encoder_log_sigma", log_sigma)
        tolerated(golden, "encoder_flat", latents[:, : shape.given_size])
        tolerated(golden, "encoder_mean_path", network.encode(pictures))
        px = len(t["enhanced"])
        sharpness, contrast = (
            float(said(rf"{name}\(([\d.]+)\)", golden.info["tensors"]["enhanced"]["what"]))
            for name in ("Sharpness", "Contrast")
        )
        large = Image.fromarray(t["low_picture"]).resize((px, px), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(np.asarray(large), t["resized"])
        np.testing.assert_array_equal(np.asarray(ImageEnhance.Sharpness(large).enhance(sharpness)), t["sharpened"])
        found = enhanced(t["low_picture"], px=px, sharpness=sharpness, contrast=contrast)
        np.testing.assert_array_equal(found, t["enhanced"])


def test_the_published_vdvae_has_the_published_sizes() -> None:
    network = empty("vdvae", {})
    assert isinstance(network, Vdvae)
    assert (sum(p.numel() for p in network.parameters()), len(network.state_dict())) == (125_005_860, 2_482)
    assert (VdvaeShape().given_size, len(VdvaeShape().layers())) == (91_168, 75)
