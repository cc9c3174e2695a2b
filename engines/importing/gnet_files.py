"""GNet's published file (``gnet_multisubject.pt``) to an engine pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from engines.importing import interfaces
from engines.importing.drafts import Draft, DraftStage
from engines.importing.keys import Ledger, shape_of
from engines.importing.weight_files import locate, read
from rtdecode.decode.networks.gnet import GNetShape
from rtdecode.errors import CheckpointError

_REST = "input_mean|voxel_mask|voxel_roi|voxel_index|brain_nii_shape|val_cc|final_params"


def draft_gnet(weights: str, *, participants: Sequence[int] | None = None, ignored: Sequence[str] = ()) -> Draft:
    """Read the trunk and the readouts with the best held-out correlation.

    Parameters
    ----------
    weights : str
        Path or hub name.
    participants : sequence of int or None
        Numbers in the file of those whose readouts are kept; None: all.
    ignored : sequence of str
        As of `draft_mindeye2`.

    Raises
    ------
    CheckpointError
        The file is not to be had or cannot be read, or a key is missing, unexpected or of another shape.
    """
    path = locate(weights)
    ledger = Ledger(path.name, read(path, arrays=True))
    best = Ledger(f"{path.name}: best_params", _mapping(path.name, ledger.one("best_params")))
    trunk = _tensors(best.source, _mapping(path.name, best.one("enc")))
    readouts = _mapping(path.name, best.one("fwrfs"))
    known = sorted(int(number) for number in readouts)
    kept = known if participants is None else sorted(participants)
    if absent := sorted(set(kept) - set(known)):
        raise CheckpointError(f"{path.name}: expected participants of {known}, got {absent}")
    ledger.drop(_REST, "masks, measures and other parameters of the training; not needed to predict")
    best.close(ignored)
    of_each = [_tensors(best.source, _at(readouts, number)) for number in kept]
    state = {f"enc.{key}": value for key, value in trunk.items()}
    state |= {f"fwrfs.{i}.{key}": value for i, one in enumerate(of_each) for key, value in one.items()}
    width = shape_of(best.source, trunk, "enc.conv6b.conv1.weight")[0]
    shape = GNetShape(
        voxels=[shape_of(best.source, one, "b")[0] for one in of_each],
        trunk=width,
        pass_through=shape_of(best.source, trunk, "enc.conv5a.conv1.weight")[0] - width,
    )
    sizes = asdict(shape)
    draft = Draft(kind="gnet")
    stage = DraftStage(kind="gnet", sizes=sizes, interface=interfaces.gnet(sizes), state=state, source=path.name)
    draft.add("gnet", stage)
    draft.dropped[path.name] = ledger.close(ignored)
    draft.tables |= {"participants": kept, "tokens": {"count": 1, "channels": sum(shape.channels)}}
    return draft


def _mapping(source: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{source}: expected a mapping of names, got {type(value).__name__}")
    return value


def _at(readouts: Mapping[Any, Any], number: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(value for key, value in readouts.items() if int(key) == number)
    return found


def _tensors(source: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        made = {key: value if isinstance(value, Tensor) else torch.from_numpy(value) for key, value in values.items()}
    except TypeError as error:
        raise CheckpointError(f"{source}: expected tensors and numeric arrays: {error}") from None
    return Ledger(source, made).take("")
