"""A pack of random weights in MindEye2's shapes, for measuring time and memory where the published weights are not."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.importing import interfaces
from engines.importing.drafts import PRECISIONS, Interface, describe, write_toml
from engines.importing.shapes import mindeye2_sizes
from engines.importing.tensors import write_tensors
from rtdecode.decode.networks.build import empty
from rtdecode.packs.description import PACK_SCHEMA
from rtdecode.packs.sealed import seal

_PIECE = 1 << 24
_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
_BLURRY_SIDE = 28


def write_fake_mindeye2(
    out: Path,
    *,
    dims: str,
    stages: Sequence[str],
    precision: str = "float16",
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
) -> str:
    """Write and seal a pack of random weights; no more than a piece of one tensor is in memory at a time.

    Parameters
    ----------
    out : Path
    dims : {"small", "cut", "full"}
        See `mindeye2_sizes`.
    stages : sequence of str
        Which stages to write.
    precision : str
        Of the weights on disk.
    seed : int
    device : str
        Where the weights are drawn; those of a GPU are other numbers, and sooner there.
    report : callable
        Is given a line before each stage.

    Returns
    -------
    str
        Identity of the pack.
    """
    known = mindeye2_sizes(dims)
    sizes = {name: entry for name, entry in known.items() if name in stages}

    def write(folder: Path) -> None:
        for name, (kind, values) in sizes.items():
            shapes = {key: tuple(value.shape) for key, value in empty(kind, values).state_dict().items()}
            report(f"{name}: {sum(map(math.prod, shapes.values())) / 1e6:,.1f} M values")
            path = folder / f"{name}.safetensors"
            write_tensors(path, shapes, random_pieces(shapes, seed, device), dtype=PRECISIONS[precision])
        if "captioner" in sizes:
            write_tokenizer(folder / "captioner", sizes["captioner"][1]["vocab_size"])
        tokens = known["backbone"][1]
        write_toml(
            folder,
            kind="mindeye2",
            name=f"fake-mindeye2-{dims}",
            licence="none: random weights",
            precision=precision,
            stages={
                name: describe(name, kind, values, _interface(name, values, known))
                for name, (kind, values) in sizes.items()
            },
            tables={"participants": [0], "tokens": {"count": tokens["tokens"], "channels": tokens["dim"]}},
        )

    return seal(out, PACK_SCHEMA, write)


def random_pieces(shapes: Mapping[str, tuple[int, ...]], seed: int, device: str = "cpu") -> Iterator[Tensor]:
    """Values of every tensor in turn, in pieces, scaled so that activations neither grow nor vanish.

    Matrices and kernels are normal over the square root of the values that they sum; gains are near 1; the rest is
    near 0. A tensor's values depend on the seed and its name alone.
    """
    for name, shape in shapes.items():
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        if name.endswith("rotary_emb.freqs"):
            yield 1.0 / 10000.0 ** (torch.arange(shape[0]).float() / shape[0])
            continue
        if len(shape) >= 2:
            centre, spread = 0.0, math.prod(shape[1:]) ** -0.5
        else:
            centre, spread = float(name.endswith((".weight", ".g"))), 0.1
        left = math.prod(shape)
        while left:
            n = min(left, _PIECE)
            yield torch.randn(n, generator=generator, device=device).cpu() * spread + centre
            left -= n


def _interface(name: str, sizes: dict[str, Any], stages: Mapping[str, tuple[str, dict[str, Any]]]) -> Interface:
    simple: dict[str, Callable[[dict[str, Any]], Interface]] = {
        "ridge": interfaces.ridge,
        "backbone": interfaces.backbone,
        "prior": interfaces.prior,
        "converter": interfaces.converter,
        "unclip": interfaces.denoiser,
        "refiner": interfaces.denoiser,
        "embedder": interfaces.embedder,
        "prompt": interfaces.prompt,
    }
    if name in simple:
        return simple[name](sizes)
    if name == "captioner":
        vision = sizes["vision_config"]
        return interfaces.captioner((vision["image_size"] // vision["patch_size"]) ** 2 + 1, sizes)
    if name == "blurry_autoencoder":
        return interfaces.autoencoder(_BLURRY_SIDE, sizes)
    side = stages["refiner" if name.startswith("refiner") else "unclip"][1]["sample_size"]
    if name == "small_autoencoder":
        return interfaces.small_autoencoder(side, sizes)
    return interfaces.autoencoder(side, sizes)


def write_tokenizer(folder: Path, n_words: int) -> None:
    """Word pieces of the right number, none of which is a word."""
    folder.mkdir()
    vocabulary = {_SPECIAL.get(i, f"w{i}"): i for i in range(n_words)}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": word, "special": True, **plain} for i, word in _SPECIAL.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
