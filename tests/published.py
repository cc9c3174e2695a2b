"""Small checkpoints in the published layouts: random weights under the published names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engines.importing.fake import random_pieces, write_tokenizer
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode.networks.backbone import Backbone, BackboneShape
from rtdecode.decode.networks.build import empty
from rtdecode.decode.sampling.schedule import cosine_schedule

State = dict[str, Tensor]

_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def random_state(kind: str, sizes: dict[str, Any], seed: int = 0) -> State:
    """Random weights of a network by its sizes."""
    return random_like({k: tuple(v.shape) for k, v in empty(kind, sizes).state_dict().items()}, seed)


def random_like(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    state: State = {}
    for key, shape in shapes.items():
        state[key] = torch.cat(list(random_pieces({key: shape}, seed))).reshape(shape)
    return state


def sizes_of(stage: str) -> dict[str, Any]:
    return mindeye2_sizes("small")[stage][1]


def mindeye2_state(
    *,
    voxels: list[int],
    backbone: State | None = None,
    ridge: State | None = None,
    prior: State | None = None,
    shape: BackboneShape | None = None,
    prior_sizes: dict[str, Any] | None = None,
) -> State:
    """``model_state_dict`` of a MindEye2 checkpoint; parts that are not given are random, with their mixer blocks."""
    shape = shape or BackboneShape(**{**sizes_of("backbone"), "blocks": 4})
    prior_sizes = prior_sizes or sizes_of("prior")
    if backbone is None:
        with torch.device("meta"):
            shapes = {k: tuple(v.shape) for k, v in Backbone(shape).state_dict().items()}
        backbone = random_like(shapes)
    ridge = ridge or random_state("ridge", {"voxels": voxels, "hidden": shape.hidden})
    prior = prior or random_state("prior", prior_sizes)
    tables = cosine_schedule(prior_sizes["timesteps"]).tables()
    return {
        **{f"ridge.{k}": v for k, v in ridge.items()},
        **{f"backbone.{k}": v for k, v in backbone.items()},
        **{f"diffusion_prior.net.{k}": v for k, v in prior.items()},
        **{f"diffusion_prior.noise_scheduler.{k}": torch.from_numpy(v) for k, v in tables.items()},
    }


def mindeye1_state(brain: State, prior: State, timesteps: int) -> State:
    """``model_state_dict`` of a MindEye1 checkpoint."""
    tables = cosine_schedule(timesteps).tables()
    return {
        **{f"voxel2clip.{k}": v for k, v in brain.items()},
        **{f"net.{k}": v for k, v in prior.items()},
        **{f"noise_scheduler.{k}": torch.from_numpy(v) for k, v in tables.items()},
    }


def save_last(path: Path, state: State) -> Path:
    """Write a checkpoint of the training scripts of MindEye1 and MindEye2."""
    training = {"optimizer_state_dict": {"state": {}, "param_groups": []}, "lr_scheduler": {"last_epoch": 3}}
    torch.save({"epoch": 3, "model_state_dict": state, **training, "train_losses": [1.0], "lrs": [3e-4]}, path)
    return path


def save_unclip(path: Path, state: State) -> Path:
    """Write an unCLIP checkpoint as Lightning does."""
    lightning = {"global_step": 110000, "pytorch-lightning_version": "2.0", "callbacks": {}, "optimizer_states": []}
    torch.save({"state_dict": state, "epoch": 0, **lightning}, path)
    return path


def sgm_unet(state: State, levels: int = 3) -> State:
    """UNet weights under sgm's names, by the published table of names."""
    names = dict(_UNET)
    for i in range(levels):
        for j in range(2):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{3 * i + j + 1}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{3 * i + j + 1}.1"
        for j in range(3):
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{3 * i + j}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{3 * i + j}.1"
        names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{3 * (i + 1)}.0.op"
        names[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{3 * i + 2}.2"
    names |= {"mid_block.attentions.0": "middle_block.1"}
    names |= {f"mid_block.resnets.{j}": f"middle_block.{2 * j}" for j in range(2)}
    out: State = {}
    for key, value in state.items():
        old = next(n for n in sorted(names, key=len, reverse=True) if key.startswith(n + "."))
        rest = key[len(old) + 1 :]
        if ".resnets." in old:
            part = next(p for p in _RESIDUAL if rest.startswith(p))
            rest = _RESIDUAL[part] + rest[len(part) :]
        out[f"model.diffusion_model.{names[old]}.{rest}"] = value
    assert len(out) == len(state)
    return out


def sgm_autoencoder(state: State, levels: int = 4) -> State:
    """Autoencoder weights under sgm's names; its attention was made of 1 x 1 convolutions."""
    out: State = {}
    for key, value in state.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for i in range(levels):
            up = levels - 1 - i
            name = name.replace(f"down_blocks.{i}.resnets", f"down.{i}.block")
            name = name.replace(f"up_blocks.{i}.resnets", f"up.{up}.block")
            name = name.replace(f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample")
            name = name.replace(f"up_blocks.{i}.upsamplers.0", f"up.{up}.upsample")
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        if "attentions" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            for new, old in (("to_out.0", "proj_out"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
                name = name.replace(new, old)
            if value.ndim == 2:
                value = value[:, :, None, None]
        out[f"first_stage_model.{name}"] = value
    return out


def stripped(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def unclip_state() -> tuple[State, dict[str, State]]:
    """State dict of an unCLIP checkpoint, and the networks' own state dicts that it was made from."""
    made = {
        "unclip": random_state("denoiser", sizes_of("unclip"), 1),
        "autoencoder": random_state("autoencoder", sizes_of("autoencoder"), 2),
        "embedder": random_state("embedder", sizes_of("embedder"), 3),
    }
    tower = {f"conditioner.embedders.0.model.{key}": value for key, value in made["embedder"].items()}
    state = sgm_unet(stripped(made["unclip"], "unet.")) | sgm_autoencoder(stripped(made["autoencoder"], "vae.")) | tower
    state["conditioner.embedders.0.model.logit_scale"] = torch.tensor(4.6)
    state["denoiser.sigmas"] = torch.linspace(0.03, 14.6, 1000)
    return state, made


def refiner_state() -> tuple[State, dict[str, State]]:
    """State dict of an SDXL checkpoint, and the networks' own."""
    made = {
        "refiner": random_state("denoiser", sizes_of("refiner"), 4),
        "refiner_autoencoder": random_state("autoencoder", sizes_of("refiner_autoencoder"), 5),
        "prompt": random_state("prompt", sizes_of("prompt"), 6),
    }
    state = sgm_unet(stripped(made["refiner"], "unet."))
    state |= sgm_autoencoder(stripped(made["refiner_autoencoder"], "vae."))
    for key, value in made["prompt"].items():
        tower, name = key.split(".", 1)
        place = "0.transformer.text_model" if tower == "clip_l" else "1.model"
        state[f"conditioner.embedders.{place}.{name}"] = value
    state["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    return state, made


def git_folder(folder: Path) -> Path:
    """GIT with an image encoder, as published."""
    write_tokenizer(folder, sizes_of("captioner")["vocab_size"])
    sizes = sizes_of("captioner")
    state = random_state("captioner", sizes, 7)
    state["git.image_encoder.vision_model.embeddings.class_embedding"] = torch.zeros(64)
    state["git.embeddings.position_ids"] = torch.arange(4)[None]
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "git", "architectures": None}))
    return folder


def old_names(state: State) -> State:
    """Attention of autoencoders as diffusers named it before 0.17."""
    table = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    out = {}
    for key, value in state.items():
        name = key
        for new, old in table.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        out[name] = value
    return out


SMALL_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
}
SMALL_CODER = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
SMALL_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""CLIP's tower with 17 tokens."""
CLIP_TOKENS = 17


def write_clip(folder: Path, dim: int) -> Path:
    """CLIP's vision tower as diffusers keeps it."""
    folder.mkdir(parents=True)
    config = {**SMALL_CLIP, "projection_dim": dim}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stripped(random_state("clip_image", config, 11), "clip."), folder / "model.safetensors")
    return folder


def image_variation_folder(folder: Path, dim: int, *, versatile: bool = True) -> Path:
    """Versatile Diffusion or SD Image Variations in diffusers' layout, cut down."""
    unet = {**SMALL_UNET, "cross_attention_dim": dim}
    parts = {
        "image_unet" if versatile else "unet": (unet, random_state("image_denoiser", unet, 8), "unet."),
        "vae": (SMALL_CODER, random_state("coder", SMALL_CODER, 9), "vae."),
    }
    for name, (config, state, prefix) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"_class_name": "x", **config}))
        save_file(stripped(state, prefix), folder / name / "diffusion_pytorch_model.safetensors")
    write_clip(folder / "image_encoder", dim)
    return folder


_CASCADE = {
    "timestep_ratio_embedding_dim": 16,
    "conditioning_dim": 24,
    "block_out_channels": [16, 24],
    "num_attention_heads": [2, 4],
    "down_num_layers_per_block": [1, 1],
    "up_num_layers_per_block": [1, 1],
    "down_blocks_repeat_mappers": [1, 1],
    "up_blocks_repeat_mappers": [1, 1],
    "block_types_per_layer": [["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]] * 2,
    "clip_text_pooled_in_channels": 20,
    "clip_seq": 4,
    "dropout": [0.1, 0.1],
}


def mirage_imagery_files(folder: Path, *, voxels: int, dim: int) -> dict[str, str]:
    """MIRAGE's imagery files, cut down, in the layout that `MirageImageryFiles` names."""
    configs: dict[str, tuple[str, dict[str, Any], str]] = {
        "stage_c": (
            "unet.",
            _CASCADE
            | {"in_channels": 16, "out_channels": 16, "patch_size": 1, "clip_text_in_channels": 20}
            | {"clip_image_in_channels": dim, "timestep_conditioning_type": ["sca", "crp"], "switch_level": [False]},
            "stage_c",
        ),
        "stage_b": (
            "unet.",
            _CASCADE
            | {"in_channels": 4, "out_channels": 4, "patch_size": 2, "effnet_in_channels": 16}
            | {"pixel_mapper_in_channels": 3, "timestep_conditioning_type": ["sca"]},
            "stage_b",
        ),
        "stage_a": (
            "vqgan.",
            {"levels": 2, "bottleneck_blocks": 1, "embed_dim": 16, "latent_channels": 4, "num_vq_embeddings": 8}
            | {"scale_factor": 0.43},
            "stage_a",
        ),
        "vdvae": (
            "",
            {"image_size": 16, "enc_blocks": "16x1,16d2,8x1,8d2,4x1,4d4,1x1", "dec_blocks": "1x1,4m1,4x1,8m4,16m8"}
            | {"width": 24, "zdim": 4, "num_mixtures": 3, "no_bias_above": 16, "given": 3},
            "vdvae",
        ),
    }
    found = {}
    for number, (name, (prefix, config, kind)) in enumerate(configs.items()):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        state = random_state(kind, config, 20 + number)
        if name == "stage_a":
            state = {key.replace("vquantizer.embedding", "vquantizer.codebook"): one for key, one in state.items()}
        if name.startswith("stage_b"):
            state = {key.replace("clip_txt_pooled_mapper", "clip_mapper"): one for key, one in state.items()}
        save_file(stripped(_joined_attention(state), prefix), folder / name / "weights.safetensors")
        found[name] = str(folder / name / "weights.safetensors")
    save_file(_positive(random_state("effnet", {"channels": 16}, 30)), folder / "effnet.safetensors")
    caption = {"text": torch.randn(7, 20), "pooled": torch.randn(20)}
    save_file(caption, folder / "caption.safetensors")
    (folder / "ridges").mkdir()
    heads = {"image": dim, "text": 7 * 20, "prompt": 5 * 8, "blurry": 132, "retrieval": CLIP_TOKENS * 16}
    for i, (head, outputs) in enumerate(heads.items()):
        generator = torch.Generator().manual_seed(40 + i)
        ridge = {"coef": torch.randn(outputs, voxels, generator=generator) / voxels, "intercept": torch.zeros(outputs)}
        save_file(ridge, folder / "ridges" / f"ridge_{head}_weights.safetensors")
    return found | {
        "effnet": str(folder / "effnet.safetensors"),
        "empty_caption": str(folder / "caption.safetensors"),
        "embedder": str(write_clip(folder / "clip", dim)),
        "ridges": str(folder / "ridges"),
    }


def _positive(state: State) -> State:
    """Variances that batch norms have kept are above 0."""
    return {key: one.abs() + 1.2 if key.endswith("running_var") else one for key, one in state.items()}


def _joined_attention(state: State) -> State:
    """Queries, keys and values in one tensor, as Stability's files have them."""
    out: State = {}
    for key, value in state.items():
        for part in ("weight", "bias"):
            if key.endswith(f".to_q.{part}"):
                stem = key.removesuffix(f"to_q.{part}")
                out[f"{stem}attn.in_proj_{part}"] = torch.cat([state[f"{stem}to_{one}.{part}"] for one in "qkv"])
            elif key.endswith(f".to_out.0.{part}"):
                out[f"{key.removesuffix(f'to_out.0.{part}')}attn.out_proj.{part}"] = value
        if ".to_" not in key:
            out[key] = value
    return out
