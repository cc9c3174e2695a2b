"""The published networks against the published code's own numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rtdecode.decode.networks.backbone import Backbone, BackboneShape, Ridge, fold_mixers, mixer_constant
from rtdecode.decode.networks.brain import BrainNetwork, BrainShape, LowLevel
from rtdecode.decode.networks.converter import ClipConverter
from rtdecode.decode.networks.preprocess import bigg_input, resize
from tests.golden import FORWARD, Golden, close, goldens, numbered


def shape_of(golden: Golden, *, low_level: bool) -> BackboneShape:
    dims = golden.dims
    return BackboneShape(
        hidden=dims["hidden"],
        tokens=dims["clip_seq"],
        dim=dims["clip_emb"],
        blocks=dims["n_blocks"],
        low_level=low_level,
    )


def part(golden: Golden, prefix: str = "") -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: torch.from_numpy(v) for k, v in golden.state().items() if k.startswith(prefix)}


def both_forms(shape: BackboneShape, state: dict[str, torch.Tensor]) -> list[Backbone]:
    """The backbone as published, and with its mixer blocks folded."""
    published, folded = Backbone(shape).eval(), Backbone(replace(shape, blocks=0)).eval()
    published.load_state_dict(state, strict=True)
    folded.load_state_dict(fold_mixers(state), strict=True)
    return [published, folded]


@torch.no_grad()
def test_golden_mindeye2_ridge_and_backbone(shared: Path) -> None:
    for golden in goldens(shared, "me2_backbone"):
        dims = golden.dims
        ridge = Ridge(dims["voxels"], dims["hidden"]).eval()
        ridge.load_state_dict(part(golden, "ridge."), strict=True)
        state = part(golden, "backbone.")
        close(golden, "mixer2_constant_sum", mixer_constant(state), FORWARD)
        shape = shape_of(golden, low_level=dims["blurry_recon"])
        for backbone in both_forms(shape, state):
            for i in range(len(dims["voxels"])):
                voxels = torch.from_numpy(golden.tensors[f"voxels_subj{i}"])
                close(golden, f"ridge_subj{i}", ridge(voxels[:, 0], i), FORWARD)
                out = backbone(ridge(voxels[:, 0], i))
                close(golden, f"backbone_subj{i}", out.tokens, FORWARD)
                close(golden, f"clip_voxels_subj{i}", out.retrieval, FORWARD)
            for name, i in numbered(golden, r"backbone_avg\d+_subj(\d+)"):
                voxels = torch.from_numpy(golden.tensors[f"voxels_subj{i}"])
                repeats = [backbone(ridge(voxels[:, r], i)) for r in range(voxels.shape[1])]
                close(golden, name, torch.stack([r.tokens for r in repeats]).mean(0), FORWARD)
                mean = torch.stack([r.retrieval for r in repeats]).mean(0)
                close(golden, name.replace("backbone", "clip_voxels"), mean, FORWARD)
                averaged = backbone(ridge(voxels.mean(1), i))
                close(golden, f"backbone_voxavg_subj{i}", averaged.tokens, FORWARD)
                close(golden, f"clip_voxels_voxavg_subj{i}", averaged.retrieval, FORWARD)


@torch.no_grad()
def test_golden_mindeye2_low_level(shared: Path) -> None:
    for golden in goldens(shared, "me2_lowlevel"):
        x = torch.from_numpy(golden.tensors["x"])
        for backbone in both_forms(shape_of(golden, low_level=True), part(golden)):
            maps: list[torch.Tensor] = []
            backbone.bnorm.register_forward_hook(lambda _module, _input, output, maps=maps: maps.append(output))
            out = backbone(x)
            close(golden, "bnorm_out", maps[0], FORWARD)
            close(golden, "backbone", out.tokens, FORWARD)
            close(golden, "clip_voxels", out.retrieval, FORWARD)
            close(golden, "blurry_latent", out.latent, FORWARD)
            close(golden, "blurry_aux", out.features, FORWARD)


@torch.no_grad()
def test_golden_converter(shared: Path) -> None:
    for golden in goldens(shared, "bigG_to_L"):
        dims = golden.dims
        converter = ClipConverter(dims["clip_seq"], dims["clip_emb"], dims["text_seq"], dims["text_emb"])
        converter.load_state_dict(part(golden), strict=True)
        close(golden, "y", converter(torch.from_numpy(golden.tensors["x"])), FORWARD)


@torch.no_grad()
def test_golden_mindeye1_brain_network(shared: Path) -> None:
    for golden in goldens(shared, "me1_brainnetwork"):
        dims = golden.dims
        shape = BrainShape(
            voxels=dims["in_dim"],
            hidden=dims["h"],
            tokens=dims["out_dim"] // dims["clip_size"],
            dim=dims["clip_size"],
            projector=dims["projector_hidden"],
            blocks=dims["n_blocks"],
        )
        network = BrainNetwork(shape).eval()
        network.load_state_dict(part(golden), strict=True)
        tokens, retrieval = network(torch.from_numpy(golden.tensors["x"]))
        close(golden, "voxel2clip_out", tokens.flatten(1), FORWARD)
        close(golden, "clip_voxels_proj", retrieval, FORWARD)


@torch.no_grad()
def test_golden_mindeye1_low_level(shared: Path) -> None:
    for golden in goldens(shared, "me1_lowlevel"):
        network = LowLevel(golden.dims["in_dim"], golden.dims["h"], blocks=golden.dims["n_blocks"]).eval()
        network.load_state_dict(part(golden), strict=True)
        latent, features = network(torch.from_numpy(golden.tensors["x"]))
        close(golden, "latent", latent, FORWARD)
        for name, count in numbered(golden, r"aux_first(\d+)tokens"):
            close(golden, name, features[:, :count], FORWARD)


def test_golden_bigg_preprocessing(shared: Path) -> None:
    for golden in goldens(shared, "clip_preprocess"):
        [(source, _)] = numbered(golden, r"x(\d+)")
        pictures = torch.from_numpy(golden.tensors[source])
        for name, px in numbered(golden, r"resized_(\d+)"):
            close(golden, name, resize(pictures, px), FORWARD)
        for name, px in numbered(golden, r"preprocessed_(\d+)"):
            close(golden, name, bigg_input(pictures, px), FORWARD)
