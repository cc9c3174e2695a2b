"""`engines latents`: what a pack's first layer gives for a picture, learned from its own participants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engines.embed.components import Float64, fit_ridge, principal
from engines.embed.file_columns import Columns
from engines.sealed_copies import seal_copy
from rtdecode.decode.families.latent_map import LatentsTable, MapsLatents
from rtdecode.decode.families.linear_layer import linear_layer
from rtdecode.decode.families.mindeye1.mindeye1_description import FIRST_LAYER, MindEye1Description
from rtdecode.decode.families.mindeye2.assembly import ridge_layer
from rtdecode.decode.families.mindeye2.mindeye2_description import MindEye2Description
from rtdecode.errors import EngineError, TrainingError
from rtdecode.packs import EnginePack
from rtdecode.packs.sealed import check_target

FEWEST = 8
"""Pictures that a map may be fitted on."""
_FILE = "latents.safetensors"
_TRIALS = 1024
_BLOCK = 1 << 25
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOrder:
    """What the map is learned from.

    Attributes
    ----------
    pictures : Path
        A safetensors file with ``tokens`` (p, t, d), float16 or float32.
    participants : sequence of (int, Path)
        Number of a ridge layer of the pack, 0 of MindEye1, and a safetensors file with ``betas`` (n, voxels),
        standardised as that layer wants them, and ``picture`` (n,), rows of `pictures`.
    components : int
        At most.
    block : int
        Values of tokens in memory at a time.
    """

    pictures: Path
    participants: Sequence[tuple[int, Path]]
    components: int = 512
    block: int = _BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedMap:
    """What came of it.

    Attributes
    ----------
    identity : str
        Of the new pack.
    pictures, trials, components : int
    held_out_r2 : float
        See `engines.embed.components.Ridge`.
    """

    identity: str
    pictures: int
    trials: int
    components: int
    held_out_r2: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """Pictures that somebody saw: rows (n,), the mean output (n, hidden) of the first layers, and number of trials."""

    rows: NDArray[np.int64]
    outputs: Float64
    trials: int


def learn_latents(pack: EnginePack, order: LatentOrder, out: Path, *, progress: Progress) -> LearnedMap:
    """Learn the map and seal a copy of the pack with it; all else in the pack stays.

    Parameters
    ----------
    pack : EnginePack
        Of kind ``mindeye2``, with ridge and backbone, or ``mindeye1``.
    order : LatentOrder
    out : Path
        Folder of the new pack.
    progress : callable
        Is told, block by block, what share of the reading was done; the shares sum to 1.

    Raises
    ------
    EngineError
        The pack has no such layers.
    TrainingError
        The data are not for this pack, too few, or not finite.
    BundleError
        The pack cannot be put where it is wanted.
    """
    check_target(out)
    if order.components < 1:
        raise TrainingError(f"components: expected at least 1, got {order.components}")
    layout = _layout(pack)
    pictures = Columns(order.pictures, {"tokens": 3}, "numpy")
    if pictures.shape("tokens") != layout:
        raise TrainingError(
            f"{order.pictures}: tokens: expected (tokens, dim) {layout} for this pack, got {pictures.shape('tokens')}: "
            "embed the pictures with this pack"
        )
    seen = _see(pack, order, pictures)
    width = layout[0] * layout[1]
    found = principal(
        lambda: _blocks(pictures, seen.rows, order.block, progress),
        (len(seen.rows), width),
        most=order.components,
        dtype=np.float32 if pack.description.precision == "float32" else np.float16,
    )
    ridge = fit_ridge(found, seen.outputs)

    def change(folder: Path) -> MapsLatents:
        arrays = {
            "token_mean": found.mean,
            "basis": found.basis,
            "weights": ridge.weights.astype(np.float32),
            "intercept": ridge.intercept.astype(np.float32),
        }
        save_file(arrays, folder / _FILE)
        table = LatentsTable(
            file=_FILE,
            components=len(found.values),
            pictures=len(seen.rows),
            trials=seen.trials,
            participants=sorted({number for number, _ in order.participants}),
            penalty=ridge.penalty,
            held_out_r2=ridge.held_out_r2,
        )
        assert isinstance(pack.description, MapsLatents)
        return replace(pack.description, name=out.name, latents=table)

    return LearnedMap(
        identity=seal_copy(pack, out, change),
        pictures=len(seen.rows),
        trials=seen.trials,
        components=len(found.values),
        held_out_r2=ridge.held_out_r2,
    )


def _layout(pack: EnginePack) -> tuple[int, int]:
    """Return number and width of the network's tokens."""
    said = pack.description
    if isinstance(said, MindEye2Description) and {"ridge", "backbone"} <= said.stages.keys():
        return said.size("backbone", "tokens"), said.size("backbone", "dim")
    if isinstance(said, MindEye1Description):
        return said.size("brain", "tokens"), said.size("brain", "dim")
    raise EngineError(
        f"pack {pack.name}: expected a pack of kind mindeye1, or mindeye2 with stages ridge and backbone, got kind "
        f"{said.kind} with {', '.join(said.stages)}: rtdecode engines import"
    )


def _hidden(pack: EnginePack) -> int:
    """Return how many values a participant's layer gives."""
    return pack.description.size("ridge" if isinstance(pack.description, MindEye2Description) else "brain", "hidden")


def _first_layer(pack: EnginePack, participant: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (hidden, voxels) and bias (hidden,) of a participant's layer."""
    if isinstance(pack.description, MindEye2Description):
        return ridge_layer(pack, participant)
    if participant:
        raise EngineError(
            f"pack {pack.name}: expected participant 0, the only one of a MindEye1 network, got {participant}"
        )
    return linear_layer(pack, "brain", FIRST_LAYER)


def _see(pack: EnginePack, order: LatentOrder, pictures: Columns) -> _Seen:
    people = [(number, Columns(path, {"betas": 2, "picture": 1}, "numpy")) for number, path in order.participants]
    for number, table in people:
        (given,), wanted = table.shape("betas"), _first_layer(pack, number)[0].shape[1]
        if given != wanted:
            raise TrainingError(
                f"{table.path}: betas: expected {wanted} voxels, those of participant {number}, got {given}"
            )
    shown = [table.refer("picture", pictures) for _, table in people]
    rows, index, counts = np.unique(np.concatenate(shown), return_inverse=True, return_counts=True)
    if len(rows) < FEWEST:
        raise TrainingError(f"expected trials of at least {FEWEST} pictures, got {len(rows)}: give more participants")
    outputs = np.zeros((len(rows), _hidden(pack)))
    done = 0
    for number, table in people:
        weight, bias = _first_layer(pack, number)
        for at in range(0, len(table), _TRIALS):
            betas = table.part("betas")[at : min(at + _TRIALS, len(table))].astype(np.float32)
            if wrong := int(np.sum(~np.isfinite(betas))):
                raise TrainingError(
                    f"{table.path}: betas: expected finite values, got {wrong} that are not in trials {at} to "
                    f"{at + len(betas) - 1}: give those voxels the mean, 0"
                )
            np.add.at(outputs, index[done : done + len(betas)], betas @ weight.T + bias)
            done += len(betas)
    return _Seen(rows=rows, outputs=outputs / counts[:, None], trials=done)


def _blocks(pictures: Columns, rows: NDArray[np.int64], values: int, progress: Progress) -> Iterator[Float64]:
    """Tokens (n, columns) of some pictures, so many values at a time but a whole token at least."""
    part = pictures.part("tokens")
    tokens, dim = pictures.shape("tokens")
    step = max(1, values // (len(rows) * dim))
    for at in range(0, tokens, step):
        size = min(step, tokens - at)
        block = np.empty((len(rows), size * dim))
        for i, row in enumerate(rows.tolist()):
            block[i] = part[row : row + 1, at : at + size].reshape(-1)
        if not np.isfinite(block).all():
            row = int(rows[~np.isfinite(block).all(1)][0])
            raise TrainingError(f"{pictures.path}: tokens: expected finite values, got others in row {row}")
        yield block
        progress(size / tokens / 2)  # every block is read twice
