"""Packs of random weights: right by safetensors' own reading, right in shape, and never whole in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engines.importing.fake import random_pieces, write_fake_mindeye2
from engines.importing.shapes import mindeye2_sizes
from engines.importing.tensors import write_tensors
from rtdecode.__main__ import main
from rtdecode.decode.networks.build import empty
from rtdecode.packs import open_pack


def test_a_stream_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(()), "c": torch.randn(7), "none": torch.randn(0, 4)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    pieces = [piece for value in tensors.values() for piece in value.flatten().split(4) if piece.numel()]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        write_tensors(tmp_path / "t.safetensors", shapes, iter(pieces), dtype=dtype)
        got = load_file(tmp_path / "t.safetensors")
        assert got.keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(got[name], value.to(dtype)), name


def test_pieces_that_are_not_the_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes"):
        write_tensors(tmp_path / "t.safetensors", {"a": (4,)}, [torch.zeros(3)], dtype=torch.float32)


def test_small_pack_has_the_shapes_of_its_networks_and_finite_values(tmp_path: Path) -> None:
    sizes = mindeye2_sizes("small")
    assert (
        main(["engines", "fake", "mindeye2", "--dims", "small", "--out", str(tmp_path / "p"), "--stages", *sizes]) == 0
    )
    pack = open_pack(str(tmp_path / "p"))
    for name, (kind, values) in sizes.items():
        expected = {key: tuple(value.shape) for key, value in empty(kind, values).state_dict().items()}
        with safe_open(tmp_path / "p" / f"{name}.safetensors", framework="pt") as file:
            assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == expected  # noqa: SIM118
        for key, value in load_file(pack.folder / pack.description.stage(name).file).items():
            assert value.dtype == torch.float16
            assert value.isfinite().all(), key


def test_equal_seeds_give_equal_packs(tmp_path: Path) -> None:
    identities = [
        write_fake_mindeye2(tmp_path / str(i), dims="small", stages=["ridge", "prior"], seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert identities[0] == identities[1] != identities[2]


def test_large_tensors_come_in_bounded_pieces() -> None:
    shape = (425_984, 4096)
    stream: Iterator[torch.Tensor] = random_pieces({"backbone_linear.weight": shape}, 0)
    first = next(stream)
    assert first.numel() <= 1 << 24
    # Scaled to the sum of `hidden` values.
    assert first.std().item() == pytest.approx(4096**-0.5, rel=0.01)


def test_full_shapes_are_the_published_ones() -> None:
    sizes = mindeye2_sizes("full")
    shapes = {
        name: {key: tuple(value.shape) for key, value in empty(kind, values).state_dict().items()}
        for name, (kind, values) in sizes.items()
    }
    assert shapes["ridge"]["linears.0.weight"] == (4096, 15724)
    assert shapes["backbone"]["backbone_linear.weight"] == (425_984, 4096)
    assert shapes["backbone"]["blin1.weight"] == (3136, 4096)
    prior = shapes["prior"]
    assert prior["to_time_embeds.0.1.net.0.0.weight"] == (3328, 1664)
    assert prior["causal_transformer.layers.5.0.to_kv.weight"] == (104, 1664)
    assert prior["causal_transformer.layers.5.1.1.weight"] == (13312, 1664)
    assert prior["causal_transformer.rel_pos_bias.relative_attention_bias.weight"] == (32, 32)
    assert shapes["converter"]["linear1.weight"] == (257, 256)
    assert shapes["converter"]["linear2.weight"] == (1024, 1664)
    assert shapes["unclip"]["unet.class_embedding.linear_1.weight"] == (1280, 1024)
    assert shapes["refiner"]["unet.class_embedding.linear_1.weight"] == (1280, 2816)
    assert shapes["embedder"]["visual.conv1.weight"] == (1664, 3, 14, 14)

    def millions(name: str, prefix: str = "") -> float:
        return sum(math.prod(shape) for key, shape in shapes[name].items() if key.startswith(prefix)) / 1e6

    # As counted of the published ones: the UNet, the prior's transformer, the backbone's linear layer.
    assert millions("unclip") == pytest.approx(2500, rel=0.01)
    assert millions("prior", "causal_transformer.") == pytest.approx(236, rel=0.01)
    assert millions("backbone", "backbone_linear.") == pytest.approx(1745, rel=0.001)
    assert not any("mixer" in key for key in shapes["backbone"])
    # open_clip gives 1,844.9 M for the vision tower; SDXL's text encoders have 123.1 and 694.7 M.
    assert millions("embedder") == pytest.approx(1844.9, rel=0.001)
    assert millions("prompt") == pytest.approx(123.1 + 694.7, rel=0.001)
