"""The published code's own numbers through files, import and pack: state-dict keys as published."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from engines.importing.drafts import Draft
from engines.importing.mindeye1_files import MindEye1Files, draft_mindeye1
from engines.importing.mindeye2_files import MindEye2Files, draft_mindeye2
from rtdecode.decode.networks.backbone import BackboneShape
from rtdecode.decode.networks.build import load
from rtdecode.decode.sampling.ddpm import count_draws, sample_prior
from rtdecode.decode.sampling.schedule import cosine_schedule
from rtdecode.packs import open_pack
from tests.golden import FORWARD, LOOP, Golden, close, goldens, numbered
from tests.published import mindeye1_state, mindeye2_state, old_names, random_state, save_last, sizes_of
from tests.unit.test_golden_networks import part, shape_of
from tests.unit.test_golden_prior import draws_of, predictor


def networks(draft: Draft, folder: Path) -> dict[str, Any]:
    """Seal a draft, open it again, and load every network."""
    draft.seal(folder, name="golden", licence="none", precision="float32")
    pack = open_pack(str(folder))
    return {name: load(pack, name, device="cpu", dtype=torch.float32) for name in pack.description.stages}


def prior_sizes(golden: Golden) -> dict[str, Any]:
    names = ("dim", "depth", "heads", "dim_head", "timesteps")
    return {"tokens": golden.dims["num_tokens"], **{name: golden.dims[name] for name in names}}


def like(shape: BackboneShape) -> dict[str, Any]:
    """Sizes of a prior for the tokens of a backbone."""
    return sizes_of("prior") | {"tokens": shape.tokens, "dim": shape.dim}


@torch.no_grad()
def test_golden_import_of_ridge_and_backbone(shared: Path, tmp_path: Path) -> None:
    for golden in goldens(shared, "me2_backbone"):
        shape = shape_of(golden, low_level=golden.dims["blurry_recon"])
        state = mindeye2_state(
            voxels=golden.dims["voxels"],
            ridge=part(golden, "ridge."),
            backbone=part(golden, "backbone."),
            shape=shape,
            prior_sizes=like(shape),
        )
        path = save_last(tmp_path / f"{golden.path.stem}.pth", state)
        made = networks(draft_mindeye2(MindEye2Files(weights=str(path))), tmp_path / f"{golden.path.stem}-pack")
        assert made["backbone"].shape.blocks == 0
        for i in range(len(golden.dims["voxels"])):
            voxels = torch.from_numpy(golden.tensors[f"voxels_subj{i}"])[:, 0]
            hidden = made["ridge"](voxels, i)
            out = made["backbone"](hidden)
            close(golden, f"ridge_subj{i}", hidden, FORWARD)
            close(golden, f"backbone_subj{i}", out.tokens, FORWARD)
            close(golden, f"clip_voxels_subj{i}", out.retrieval, FORWARD)


@torch.no_grad()
def test_golden_import_of_the_low_level_branch(shared: Path, tmp_path: Path) -> None:
    for golden in goldens(shared, "me2_lowlevel"):
        shape = shape_of(golden, low_level=True)
        state = mindeye2_state(voxels=[9], backbone=part(golden), shape=shape, prior_sizes=like(shape))
        path = save_last(tmp_path / f"{golden.path.stem}.pth", state)
        made = networks(draft_mindeye2(MindEye2Files(weights=str(path))), tmp_path / f"{golden.path.stem}-pack")
        out = made["backbone"](torch.from_numpy(golden.tensors["x"]))
        close(golden, "backbone", out.tokens, FORWARD)
        close(golden, "clip_voxels", out.retrieval, FORWARD)
        close(golden, "blurry_latent", out.latent, FORWARD)
        close(golden, "blurry_aux", out.features, FORWARD)


@torch.no_grad()
def test_golden_import_of_the_prior(shared: Path, tmp_path: Path) -> None:
    made: dict[str, Any] = {}
    for golden in goldens(shared, "me2_prior_forward"):
        sizes = prior_sizes(golden)
        shape = BackboneShape(hidden=16, tokens=sizes["tokens"], dim=sizes["dim"], low_level=False)
        state = mindeye2_state(voxels=[9], shape=shape, prior_sizes=sizes, prior=part(golden, "diffusion_prior.net."))
        # The tables of the file itself, where it holds them.
        state |= {k: v for k, v in part(golden).items() if k.startswith("diffusion_prior.noise_scheduler.")}
        path = save_last(tmp_path / f"{golden.path.stem}.pth", state)
        made[golden.path.stem] = networks(
            draft_mindeye2(MindEye2Files(weights=str(path))), tmp_path / f"{golden.path.stem}-pack"
        )["prior"]
        x, t, condition = (torch.from_numpy(golden.tensors[name]) for name in ("x_t", "t", "cond"))
        close(golden, "pred", made[golden.path.stem](x, t, condition), FORWARD)
        close(golden, "pred_null", made[golden.path.stem].null(x, t, condition), FORWARD)
    for golden in goldens(shared, "me2_prior_sample"):
        network = made[golden.weights().path.stem]
        predict = predictor(network, torch.from_numpy(golden.tensors["cond"]), golden.info["cond_scale"])
        schedule = cosine_schedule(network.shape.timesteps)
        steps = golden.info["timesteps_arg"] or schedule.timesteps
        noise = list(torch.from_numpy(golden.tensors["noise"]))
        close(golden, "out", sample_prior(predict, noise, schedule, steps=steps), LOOP)


@torch.no_grad()
def test_golden_import_of_the_converter(shared: Path, tmp_path: Path) -> None:
    for golden in goldens(shared, "bigG_to_L"):
        tokens, dim = golden.dims["clip_seq"], golden.dims["clip_emb"]
        shape = BackboneShape(hidden=16, tokens=tokens, dim=dim, low_level=False)
        weights = save_last(tmp_path / "last.pth", mindeye2_state(voxels=[9], shape=shape, prior_sizes=like(shape)))
        path = save_last(tmp_path / f"{golden.path.stem}.pth", part(golden))
        draft = draft_mindeye2(MindEye2Files(weights=str(weights), converter=str(path)))
        made = networks(draft, tmp_path / f"{golden.path.stem}-pack")
        close(golden, "y", made["converter"](torch.from_numpy(golden.tensors["x"])), FORWARD)


@torch.no_grad()
def test_golden_import_of_mindeye1_brain_network(shared: Path, tmp_path: Path) -> None:
    for golden in goldens(shared, "me1_brainnetwork"):
        dims = golden.dims
        sizes = sizes_of("prior") | {"tokens": dims["out_dim"] // dims["clip_size"], "dim": dims["clip_size"]}
        state = mindeye1_state(part(golden), random_state("prior", sizes), sizes["timesteps"])
        path = save_last(tmp_path / f"{golden.path.stem}.pth", state)
        made = networks(draft_mindeye1(MindEye1Files(weights=str(path))), tmp_path / f"{golden.path.stem}-pack")
        tokens, retrieval = made["brain"](torch.from_numpy(golden.tensors["x"]))
        close(golden, "voxel2clip_out", tokens.flatten(1), FORWARD)
        close(golden, "clip_voxels_proj", retrieval, FORWARD)


@torch.no_grad()
def test_golden_import_of_mindeye1_prior_and_low_level(shared: Path, tmp_path: Path) -> None:
    for golden in goldens(shared, "me1_prior"):
        sizes = prior_sizes(golden)
        brain = {"voxels": 9, "hidden": 16, "tokens": sizes["tokens"], "dim": sizes["dim"], "projector": 16}
        state = mindeye1_state(random_state("brain", brain), part(golden), sizes["timesteps"])
        path = save_last(tmp_path / f"{golden.path.stem}.pth", state)
        for low in goldens(shared, "me1_lowlevel"):
            for form, weights in (("new", part(low)), ("old", old_names(part(low)))):
                low_path = save_last(tmp_path / f"{low.path.stem}-{form}.pth", weights)
                draft = draft_mindeye1(MindEye1Files(weights=str(path), low_level=str(low_path)))
                made = networks(draft, tmp_path / f"{golden.path.stem}-{low.path.stem}-{form}-pack")
                latent, features = made["low_level"](torch.from_numpy(low.tensors["x"]))
                close(low, "latent", latent, FORWARD)
                for name, count in numbered(low, r"aux_first(\d+)tokens"):
                    close(low, name, features[:, :count], FORWARD)
        condition = torch.from_numpy(golden.tensors["cond"])
        for name, t in numbered(golden, r"pred_t(\d+)"):
            close(golden, name, predictor(made["prior"], condition)(condition * 0.5, t), FORWARD)
        schedule = cosine_schedule(sizes["timesteps"])
        name, steps = min(numbered(golden, r"sample(\d+)"), key=itemgetter(1))
        noise = draws_of(golden, count_draws(schedule.timesteps, steps))
        out = sample_prior(predictor(made["prior"], condition), noise, schedule, steps=steps)
        close(golden, name, out / sizes["dim"] ** 0.5, LOOP)
