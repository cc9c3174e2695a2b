"""Small checkpoints in the published layouts: random weights under the published names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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
