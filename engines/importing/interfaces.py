"""Inputs and outputs of the stages, as `pack.toml` gives them."""

from __future__ import annotations

from typing import Any

from engines.importing.drafts import Interface


def ridge(sizes: dict[str, Any]) -> Interface:
    """Betas of one participant to hidden values."""
    return {"betas": ["batch", "voxels"]}, {"hidden": ["batch", 1, sizes["hidden"]]}


def backbone(sizes: dict[str, Any]) -> Interface:
    """Hidden values to tokens, and to a latent where there is a low-level branch."""
    tokens = ["batch", sizes["tokens"], sizes["dim"]]
    outputs: dict[str, list[int | str]] = {"tokens": list(tokens), "retrieval": list(tokens)}
    if sizes["low_level"]:
        outputs |= {"latent": ["batch", 4, 28, 28], "features": ["batch", 49, 512]}
    return {"hidden": ["batch", 1, sizes["hidden"]]}, outputs


def prior(sizes: dict[str, Any]) -> Interface:
    """Noisy tokens to clean ones."""
    tokens: list[int | str] = ["batch", sizes["tokens"], sizes["dim"]]
    return {"x": tokens, "t": ["batch"], "condition": list(tokens)}, {"tokens": list(tokens)}


def converter(sizes: dict[str, Any]) -> Interface:
    """BigG's tokens to CLIP-L's."""
    return (
        {"tokens": ["batch", sizes["tokens"], sizes["dim"]]},
        {"features": ["batch", sizes["out_tokens"], sizes["out_dim"]]},
    )


def captioner(tokens: int, sizes: dict[str, Any]) -> Interface:
    """CLIP-L's tokens to word numbers."""
    return {"features": ["batch", tokens, sizes["vision_config"]["hidden_size"]]}, {"words": ["batch", "words"]}


def denoiser(sizes: dict[str, Any]) -> Interface:
    """Scaled latent to its noise."""
    latent: list[int | str] = ["batch", 4, sizes["sample_size"], sizes["sample_size"]]
    inputs: dict[str, list[int | str]] = {
        "x": latent,
        "t": ["batch"],
        "tokens": ["batch", "tokens", sizes["cross_attention_dim"]],
        "vector": ["batch", sizes["projection_class_embeddings_input_dim"]],
    }
    return inputs, {"noise": list(latent)}


def autoencoder(side: int, sizes: dict[str, Any]) -> Interface:
    """Scaled latent to a picture in -1..1."""
    px = side * 2 ** (len(sizes["block_out_channels"]) - 1)
    return {"latent": ["batch", 4, side, side]}, {"picture": ["batch", 3, px, px]}


def small_autoencoder(side: int, sizes: dict[str, Any]) -> Interface:
    """Scaled latent to a picture in -1..1."""
    px = side * 2 ** (len(sizes["blocks"]) - 1)
    return {"latent": ["batch", 4, side, side]}, {"picture": ["batch", 3, px, px]}


def embedder(sizes: dict[str, Any]) -> Interface:
    """Picture in 0..1 to tokens."""
    tokens = (sizes["px"] // sizes["patch"]) ** 2
    return {"picture": ["batch", 3, "height", "width"]}, {"tokens": ["batch", tokens, sizes["width"]]}


def prompt(sizes: dict[str, Any]) -> Interface:
    """Word numbers to tokens and a pooled vector."""
    length = sizes["clip_l"]["max_position_embeddings"]
    width = sizes["clip_l"]["hidden_size"] + sizes["bigg"]["width"]
    return (
        {"words": ["batch", length]},
        {"tokens": ["batch", length, width], "pooled": ["batch", sizes["bigg"]["output_dim"]]},
    )


def brain(sizes: dict[str, Any]) -> Interface:
    """MindEye1's betas to tokens."""
    tokens: list[int | str] = ["batch", sizes["tokens"], sizes["dim"]]
    return {"betas": ["batch", sizes["voxels"]]}, {"tokens": tokens, "retrieval": list(tokens)}


def low_level(sizes: dict[str, Any]) -> Interface:
    """MindEye1's betas to a blurry latent."""
    outputs: dict[str, list[int | str]] = {"latent": ["batch", 4, 64, 64]}
    if sizes["aligned"]:
        outputs["features"] = ["batch", 256, 512]
    return {"betas": ["batch", sizes["voxels"]]}, outputs


def image_denoiser(sizes: dict[str, Any]) -> Interface:
    """Latent to its noise, given image tokens."""
    latent: list[int | str] = ["batch", 4, sizes["sample_size"], sizes["sample_size"]]
    inputs: dict[str, list[int | str]] = {
        "x": latent,
        "t": ["batch"],
        "tokens": ["batch", "tokens", sizes["cross_attention_dim"]],
    }
    return inputs, {"noise": list(latent)}


def clip_image(px: int, sizes: dict[str, Any]) -> Interface:
    """Pictures in 0..1 to CLIP's hidden state, its projection and the pooled one."""
    n = (sizes["image_size"] // sizes["patch_size"]) ** 2 + 1
    outputs: dict[str, list[int | str]] = {
        "hidden": ["batch", n, sizes["hidden_size"]],
        "tokens": ["batch", n, sizes["projection_dim"]],
        "pooled": ["batch", sizes["projection_dim"]],
    }
    return {"picture": ["batch", 3, px, px]}, outputs


def linear_head(sizes: dict[str, Any]) -> Interface:
    """MIRAGE's betas to what one ridge predicts."""
    return {"betas": ["batch", sizes["voxels"]]}, {"values": ["batch", sizes["outputs"]]}


def vdvae(given: int, drawn: int, sizes: dict[str, Any]) -> Interface:
    """Latents of the first layers, and noise of the others, to mixtures of each pixel."""
    px = sizes["image_size"]
    return (
        {"latents": ["batch", given], "noise": ["batch", drawn]},
        {"logits": ["batch", px, px, 10 * sizes["num_mixtures"]]},
    )


def effnet(side: int, sizes: dict[str, Any]) -> Interface:
    """Picture in 0..1 to stage C's latent."""
    return {"picture": ["batch", 3, 32 * side, 32 * side]}, {"latent": ["batch", sizes["channels"], side, side]}


def stage_c(side: int, text: int, sizes: dict[str, Any]) -> Interface:
    """Latent and embeddings to its noise."""
    latent: list[int | str] = ["batch", sizes["in_channels"], side, side]
    inputs: dict[str, list[int | str]] = {
        "x": latent,
        "level": ["batch"],
        "text": ["batch", text, sizes["clip_text_in_channels"]],
        "pooled": ["batch", 1, sizes["clip_text_pooled_in_channels"]],
        "image": ["batch", 1, sizes["clip_image_in_channels"]],
    }
    return inputs, {"noise": list(latent)}


def stage_b(side: int, coarse: int, sizes: dict[str, Any]) -> Interface:
    """Latent and stage C's latent to its noise."""
    latent: list[int | str] = ["batch", sizes["in_channels"], side, side]
    inputs: dict[str, list[int | str]] = {
        "x": latent,
        "level": ["batch"],
        "effnet": ["batch", sizes["effnet_in_channels"], coarse, coarse],
        "pooled": ["batch", 1, sizes["clip_text_pooled_in_channels"]],
    }
    return inputs, {"noise": list(latent)}


def stage_a(side: int, sizes: dict[str, Any]) -> Interface:
    """Latent to a picture."""
    px = side * 2 ** sizes["levels"]
    return {"latent": ["batch", sizes["latent_channels"], side, side]}, {"picture": ["batch", 3, px, px]}


def film_encoder(sizes: dict[str, Any]) -> Interface:
    """MIRAGE's (encoding) features of a window to parcels."""
    given: list[int | str] = ["batch", sizes["layers"], sizes["frames"], sizes["features"]]
    outputs: dict[str, list[int | str]] = {
        "predicted": ["batch", sizes["subjects"], sizes["volumes"], sizes["parcels"]],
        "trunk": ["batch", sizes["volumes"], sizes["hidden"]],
        "attention": ["batch", 3, sizes["layers"]],
    }
    return {"text": given, "audio": list(given), "vision": list(given), "present": ["batch", 3]}, outputs


def gnet(sizes: dict[str, Any]) -> Interface:
    """Picture in 0..1 to voxels of each participant."""
    outputs: dict[str, list[int | str]] = {f"voxels_{i}": ["batch", n] for i, n in enumerate(sizes["voxels"])}
    return {"picture": ["batch", 3, 227, 227]}, outputs
