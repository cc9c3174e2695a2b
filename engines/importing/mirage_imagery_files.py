"""Published files of MIRAGE's imagery decoder to an engine pack of its own kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.importing import cascade_files, interfaces
from engines.importing.configs import weights_in
from engines.importing.drafts import Draft, DraftStage
from engines.importing.image_variation_files import CLIP_FILES, add_clip_image
from engines.importing.keys import Ledger, check_finite, shape_of
from engines.importing.mindeye2_files import add_captioner
from engines.importing.plain_pickles import read_plain_pickle
from engines.importing.weight_files import locate, read
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import HEADS
from rtdecode.errors import CheckpointError

_FILES = {"low_level": "blurry"}
"""What the published files call a head, where that is another name."""
_PUBLISHED = {
    "image": [1, 768],
    "text": [77, 1280],
    "prompt": [257, 1024],
    "low_level": [91168],
    "retrieval": [257, 1024],
}
_STATISTICS = ("predicted_mean", "predicted_deviation", "target_mean", "target_deviation")


@dataclass(frozen=True, slots=True, kw_only=True)
class MirageImageryFiles:
    """Paths or hub names of the files; what is None becomes an absent stage.

    Attributes
    ----------
    ridges : str, optional
        Folder of ``ridge_{image,text,prompt,blurry,retrieval}_weights``, ``.pkl`` as published or ``.safetensors``.
    statistics : str, optional
        Safetensors file of ``<head>.{predicted,target}_{mean,deviation}`` of those ridges.
    embedder : str, optional
        Folder of CLIP-L's vision tower with its projection.
    captioner : str, optional
        Folder of GIT.
    vdvae, effnet, stage_c, stage_b, stage_a : str, optional
        Published weights; sizes of others stand in a ``config.json`` beside them.
    empty_caption : str, optional
        Safetensors file with bigG's last hidden state ``text`` (77, 1280) and ``pooled`` (1280,) of the empty caption.
    """

    ridges: str | None = None
    statistics: str | None = None
    embedder: str | None = None
    captioner: str | None = None
    vdvae: str | None = None
    effnet: str | None = None
    stage_c: str | None = None
    stage_b: str | None = None
    stage_a: str | None = None
    empty_caption: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirageImageryLayout:
    """Sizes that no file tells; the defaults are the published ones.

    Attributes
    ----------
    coarse, fine : int
        Height and width of the latents of stages C and B.
    shapes : dict of str to list of int, optional
        Of what each head predicts.
    generator : dict, optional
        What is to be other than published; see `CascadeTable`.
    """

    coarse: int = 24
    fine: int = 256
    shapes: dict[str, list[int]] | None = None
    generator: dict[str, Any] | None = None


def draft_mirage_imagery(
    sources: MirageImageryFiles, *, layout: MirageImageryLayout | None = None, ignored: Sequence[str] = ()
) -> Draft:
    """Read the files; as `draft_mindeye2`.

    Raises
    ------
    CheckpointError
        A file is not to be had or cannot be read, or a key is missing, unexpected or of another shape.
    """
    layout, ignored = layout or MirageImageryLayout(), list(ignored)
    draft = Draft(kind="mirage-imagery")
    shapes = {**_PUBLISHED, **(layout.shapes or {})}
    if sources.ridges is not None:
        _add_heads(draft, sources.ridges, shapes)
    if sources.captioner is not None:
        folder = locate(sources.captioner)
        draft.dropped[folder.name] = add_captioner(draft, folder, ignored)
    if sources.vdvae is not None:
        cascade_files.add_vdvae(draft, sources.vdvae, ignored)
        shapes["low_level"] = [_last(draft, "vdvae", 0, "latents")]
    if sources.effnet is not None:
        cascade_files.add_effnet(draft, sources.effnet, ignored, side=layout.coarse)
    _add_cascade(draft, sources, layout, ignored)
    if sources.embedder is not None:
        px = _last(draft, "stage_a", 1, "picture") if "stage_a" in draft.stages else 1024
        add_clip_image(draft, weights_in(sources.embedder, *CLIP_FILES), ignored, px=px)
        sizes = draft.stages["embedder"].sizes
        shapes["image"] = [1, sizes["projection_dim"]]
        shapes["retrieval"] = [(sizes["image_size"] // sizes["patch_size"]) ** 2 + 1, sizes["hidden_size"]]
    if sources.statistics is not None:
        path = locate(sources.statistics)
        draft.tensors["statistics"] = _checked_statistics(path, read(path), shapes)
        draft.tables["statistics"] = "statistics.safetensors"
    groups = _groups(draft, shapes)
    draft.tables |= {
        "shapes": {name: shapes[name] for name in HEADS},
        "generator": layout.generator or {},
        "tokens": {"count": 1, "channels": max([1, *(end for _, end in groups.values())]), "groups": groups},
    }
    return draft


def _add_cascade(draft: Draft, sources: MirageImageryFiles, layout: MirageImageryLayout, ignored: list[str]) -> None:
    stages = (sources.stage_c, sources.stage_b, sources.stage_a)
    if not any(stages):
        return
    if not all(stages) or sources.empty_caption is None:
        raise CheckpointError("expected stages C, B and A and the empty caption together: each needs the others")
    path = locate(sources.empty_caption)
    content = read(path)
    text, pooled = (content.get(name) for name in ("text", "pooled"))
    if not isinstance(text, Tensor) or not isinstance(pooled, Tensor) or text.ndim != 2:
        raise CheckpointError(f"{path}: expected tensors text (n, width) and pooled (width,), got {sorted(content)}")
    for name, value in (("text", text), ("pooled", pooled)):
        check_finite(path.name, name, value)
    draft.tensors["empty_caption"] = {"text": text, "pooled": pooled}
    draft.tables["empty_caption"] = "empty_caption.safetensors"
    cascade_files.add_stage_c(draft, str(sources.stage_c), ignored, side=layout.coarse, text=len(text))
    cascade_files.add_stage_b(draft, str(sources.stage_b), ignored, side=layout.fine, coarse=layout.coarse)
    cascade_files.add_stage_a(draft, str(sources.stage_a), ignored, side=layout.fine)


def _add_heads(draft: Draft, folder: str, shapes: dict[str, list[int]]) -> None:
    root = Path(folder).expanduser()
    for head in HEADS:
        stem = f"ridge_{_FILES.get(head, head)}_weights"
        path = next(
            (root / f"{stem}{end}" for end in (".safetensors", ".pkl") if (root / f"{stem}{end}").is_file()), None
        )
        if path is None:
            continue
        content: dict[str, Any] = read_plain_pickle(path) if path.suffix == ".pkl" else read(path)
        ledger = Ledger(path.name, {key: _tensor(value) for key, value in content.items()})
        state = {"weight": ledger.one("coef"), "bias": ledger.one("intercept").reshape(-1)}
        ledger.close()
        for key, value in state.items():
            check_finite(path.name, key, value)
        outputs, voxels = shape_of(path.name, state, "weight")
        if outputs != int(np.prod(shapes[head])):
            raise CheckpointError(f"{path}: expected {shapes[head]} outputs of the head {head}, got {outputs}")
        sizes = {"voxels": voxels, "outputs": outputs}
        stage = DraftStage(
            kind="linear_head",
            sizes=sizes,
            interface=interfaces.linear_head(sizes),
            state={key: value.float() for key, value in state.items()},
            source=path.name,
        )
        draft.add(f"{head}_head", stage)
    found = [name for name in draft.stages if name.endswith("_head")]
    if not found:
        raise CheckpointError(f"{root}: expected ridge_image_weights.pkl and the others, found none")
    if len({draft.stages[name].sizes["voxels"] for name in found}) > 1:
        raise CheckpointError(f"{root}: expected ridges of one participant, got different numbers of voxels")


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        native: NDArray[Any] = np.array(value, dtype=value.dtype.newbyteorder("="))
        return torch.from_numpy(native)
    return torch.tensor(value)


def _checked_statistics(path: Path, content: dict[str, Any], shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    for head in {key.partition(".")[0] for key in content}:
        for field in _STATISTICS:
            value = content.get(f"{head}.{field}")
            if head not in shapes or not isinstance(value, Tensor) or value.numel() != int(np.prod(shapes[head])):
                raise CheckpointError(
                    f"{path}: expected {head}.{field} with the values of that head, got {value!r:.60}"
                )
            check_finite(path.name, f"{head}.{field}", value)
    return {key: value.reshape(-1) for key, value in content.items()}


def _groups(draft: Draft, shapes: dict[str, list[int]]) -> dict[str, tuple[int, int]]:
    """Places of the targets that the pack can make of pictures, behind each other."""
    able = {"image": "embedder", "low_level": "vdvae", "retrieval": "embedder"}
    groups, at = {}, 0
    for name, stage in able.items():
        if stage in draft.stages:
            width = int(np.prod(shapes[name]))
            groups[name] = (at, at + width)
            at += width
    return groups


def _last(draft: Draft, stage: str, side: int, name: str) -> int:
    value = draft.stages[stage].interface[side][name][-1]
    assert isinstance(value, int)
    return value
