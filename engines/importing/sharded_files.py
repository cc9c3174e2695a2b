"""Folders of checkpoints as DeepSpeed and `torch.distributed.checkpoint` (FSDP) write them.

Of the latter ``.metadata`` is a pickle: its opcodes are read as data, and nothing that it names is imported or called.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops
from typing import Any

import torch
from torch import Tensor

from engines.importing.plain_pickles import PickleMachine, PickleName
from rtdecode.errors import CheckpointError

METADATA = ".metadata"
"""In the folder of a distributed checkpoint."""
LATEST = "latest"
"""In the folder of a DeepSpeed checkpoint: the name of the folder beside it that is the newest."""
_WHOLE, _PARTS = "mp_rank_*_model_states.pt", "zero_pp_rank_*_model_states.pt"
_MODELS = ("model", "module", "model_state_dict", "state_dict")
"""What trainings call the network beside their optimiser."""

Reader = Callable[[Path], dict[str, Any]]


def read_folder(folder: Path, read: Reader) -> dict[str, Any]:
    """Read the network of a checkpoint that is a folder.

    Parameters
    ----------
    folder : Path
        Of a distributed checkpoint, or of DeepSpeed with the optimiser alone in parts (ZeRO 1 and 2).
    read : callable
        Reads a file that torch wrote.

    Returns
    -------
    dict
        ``model_state_dict``, and what else the checkpoint holds, by name: its values are not read.

    Raises
    ------
    CheckpointError
        It is neither, the network lies in parts that need DeepSpeed, or a file is missing or damaged.
    """
    if (folder / METADATA).is_file():
        return _distributed(folder)
    place = folder
    if (folder / LATEST).is_file():
        place = folder / _plain_name(folder / LATEST, (folder / LATEST).read_text(encoding="utf-8").strip())
    whole, parts = sorted(place.glob(_WHOLE)), sorted(place.glob(_PARTS))
    if len(whole) != 1 or parts:
        held = f"{len(parts)} parts of it" if parts else f"{len(whole)} files {_WHOLE}, and no {METADATA}"
        raise CheckpointError(
            f"{place}: expected a file, or a folder with the whole network in one mp_rank_00_model_states.pt "
            f"(DeepSpeed, ZeRO 1 or 2) or with {METADATA} (FSDP), got {held}. {_remedy(folder)}"
        )
    content = read(whole[0])
    network = content.pop("module", None)
    if not isinstance(network, dict) or any(isinstance(one, Tensor) and not one.numel() for one in network.values()):
        raise CheckpointError(
            f"{whole[0]}: module: expected the tensors of a network, got none or empty ones. {_remedy(folder)}"
        )
    return {"model_state_dict": network, **dict.fromkeys(content)}


def _remedy(folder: Path) -> str:
    return (
        "Parts of ZeRO 3 are put together by the script that DeepSpeed leaves beside them: python "
        f"{folder}/zero_to_fp32.py {folder} pytorch_model.bin; give that file"
    )


def _plain_name(source: Path, name: str) -> str:
    """Return a file's name that a checkpoint tells, if it leads nowhere else.

    Raises
    ------
    CheckpointError
        It is a path.
    """
    if not name or name in (".", "..") or Path(name).name != name:
        raise CheckpointError(f"{source}: expected the name of a file beside it, got {name!r}")
    return name


# torch.distributed.checkpoint ---------------------------------------------------------------------------------


class _Record:
    """An object as its pickle tells it: what it is called and what it holds."""

    def __init__(self, name: str, given: tuple[Any, ...]) -> None:
        self.name = name.rpartition(".")[2]
        self.given = given
        self.state: Any = {}

    def get(self, field: str) -> Any:
        return self.state.get(field) if isinstance(self.state, dict) else None


class _Records(PickleMachine):
    """Keeps every object as a `_Record`; sizes, which torch makes of tuples, become these."""

    def _empty_list(self, _: None) -> None:
        self._stack.append([])

    def _append(self, _: None) -> None:
        value = self._stack.pop()
        self._stack[-1].append(value)

    def _appends(self, _: None) -> None:
        group = self._group()
        self._stack[-1].extend(group)

    def _newobj(self, _: None) -> None:
        self._reduce(None)

    def _reduce(self, _: None) -> None:
        given, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, PickleName):
            raise CheckpointError("expected objects with a name, got a call of something else")
        self._stack.append(given[0] if called.text == "torch.Size" else _Record(called.text, given))

    def _build(self, _: None) -> None:
        state = self._stack.pop()
        if not isinstance(self._stack[-1], _Record):
            raise CheckpointError("expected an object to hold a state, got something else")
        self._stack[-1].state = state


def _distributed(folder: Path) -> dict[str, Any]:
    path = folder / METADATA
    try:
        with path.open("rb") as stream:
            told = _Records().run(genops(stream))
        tensors = {name: one for name, one in told.get("state_dict_metadata").items() if one.get("size") is not None}
        others = told.get("state_dict_metadata").keys() - tensors.keys()
        paths = {name: _steps(place) for name, place in (told.get("planner_data") or {}).items()}
        places: dict[str, list[tuple[Any, _Record]]] = {}
        for index, stored in told.get("storage_data").items():
            places.setdefault(index.get("fqn"), []).append((index.get("offset"), stored))
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable description of a checkpoint, copy it again ({error})") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; save the network's state with torch.save and give that file") from None
    steps = {name: paths.get(name, (name,)) for name in tensors}
    model = next((first for first in _MODELS if any(len(s) > 1 and s[0] == first for s in steps.values())), None)
    beside = {paths.get(name, (name,))[0] for name in others}
    network = {}
    for name, described in tensors.items():
        inside = model is None or steps[name][0] == model
        if inside:
            key = ".".join(steps[name][model is not None :])
            network[key] = _joined(folder, name, tuple(described.get("size")), places.get(name, []))
        else:
            beside.add(steps[name][0])
    return {"model_state_dict": network, **dict.fromkeys(beside - {model})}


def _steps(place: Any) -> tuple[str, ...]:
    return tuple(map(str, place)) if isinstance(place, tuple) else (str(place),)


def _joined(folder: Path, name: str, size: tuple[int, ...], stored: list[tuple[Any, _Record]]) -> Tensor:
    """Put a tensor together from its pieces."""
    whole: Tensor | None = None
    filled = 0
    for offset, piece in _pieces(folder, name, stored):
        if whole is None:
            whole = torch.empty(size, dtype=piece.dtype)
        try:
            whole[tuple(slice(at, at + n) for at, n in zip(offset, piece.shape, strict=True))] = piece
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: {name}: expected pieces of {size}, got {tuple(piece.shape)} ({error})"
            ) from None
        filled += piece.numel()
    if whole is None or filled != math.prod(size):
        raise CheckpointError(f"{folder}: {name}: expected {math.prod(size)} values, got {filled}: are files missing?")
    return whole


def _pieces(folder: Path, name: str, stored: list[tuple[Any, _Record]]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    for offset, info in stored:
        if info.get("transform_descriptors"):
            raise CheckpointError(f"{folder}: {name}: expected plain tensors, got compressed ones: save it without")
        path = folder / _plain_name(folder / METADATA, str(info.get("relative_path")))
        try:
            with path.open("rb") as stream:
                stream.seek(info.get("offset"))
                piece = torch.load(io.BytesIO(stream.read(info.get("length"))), map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read, copy the folder again: {error}") from None
        if not isinstance(piece, Tensor):
            raise CheckpointError(f"{path}: {name}: expected a tensor, got {type(piece).__name__}")
        yield offset or (0,) * piece.dim(), piece
