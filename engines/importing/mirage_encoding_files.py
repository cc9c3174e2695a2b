"""Published files of MIRAGE (encoding; EPFL 2026) to an engine pack, and which of three numerics they are of.

The package x-transformers changed what the same weights compute, with keys and shapes as they were: which halves of a
head are rotated together (interleaved from 1.30.1 on), and whether a gain of zero means one (from 1.31.2 on).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from engines.importing import interfaces
from engines.importing.drafts import Draft, DraftStage
from engines.importing.keys import Ledger, count, shape_of
from engines.importing.mindeye2_files import open_ledger
from rtdecode.decode.networks.film_encoder import FilmEncoderShape, Rotary, rotary_frequencies
from rtdecode.errors import CheckpointError

SUBJECTS = ("sub-01", "sub-02", "sub-03", "sub-05")
_INTERLEAVED_FROM, _OFFSET_FROM = (1, 30, 1), (1, 31, 2)
_NEAR = 0.25
_TRANSFORMER = "temporal_encoder.encoder."
_TRAINING = "epoch|global_step|pytorch-lightning_version|loops|callbacks|optimizer_states|lr_schedulers|hparams_name"
_TRAINING += "|hyper_parameters|hparams_type|datamodule_.*|MixedPrecision|native_amp_scaling_state"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirageEncodingFiles:
    """What is imported, and what the weights do not tell.

    Attributes
    ----------
    weights : sequence of str
        Paths or hub names: ``model.safetensors``, or checkpoints of the training; several are an ensemble.
    x_transformers : str or None
        Version that they were trained with; needed where the weights cannot tell.
    layers : int
        Hidden states of the language model in the features; the poolers take any number.
    pool_heads : int
        Heads of the poolers.
    frames, volumes : int
        Of a window.
    """

    weights: Sequence[str]
    x_transformers: str | None = None
    layers: int = 49
    pool_heads: int = 4
    frames: int = 298
    volumes: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """How weights are to be computed with; `versions` says which of x-transformers do so."""

    rotary: Rotary
    unit_offset: bool
    versions: str


_OLD = Numerics(rotary="halfsplit", unit_offset=False, versions="1.30.0 or older")
_BETWEEN = Numerics(rotary="interleaved", unit_offset=False, versions="1.30.1 to 1.31.1")
_NEW = Numerics(rotary="interleaved", unit_offset=True, versions="1.31.2 or newer")


def draft_mirage_encoding(sources: MirageEncodingFiles, *, ignored: Sequence[str] = ()) -> Draft:
    """Read the files; as `draft_mindeye2`.

    Raises
    ------
    CheckpointError
        A file is not to be had or cannot be read, a key is missing, unexpected or of another shape, the members of an
        ensemble are of different sizes, or the numerics cannot be told or are not those of the version given.
    """
    draft = Draft(kind="mirage-encoding")
    told: set[str] = set()
    for number, name in enumerate(sources.weights, 1):
        path, content, ledger = open_ledger(name)
        inner = ledger
        if "state_dict" in content:  # of Lightning
            inner = Ledger(path.name, ledger.one("state_dict"))
            ledger.drop(_TRAINING, "state of the training")
        state = inner.take("model." if any(key.startswith("model.") for key in content.get("state_dict", {})) else "")
        numerics = numerics_of(path.name, state, sources.x_transformers)
        told.add(numerics.versions)
        sizes = asdict(_shape(path.name, state, sources, numerics))
        _check_frequencies(path.name, state, sizes)
        stage = DraftStage(
            kind="film_encoder", sizes=sizes, interface=interfaces.film_encoder(sizes), state=state, source=path.name
        )
        draft.add(f"member_{number}", stage)
        dropped: dict[str, list[str]] = {}
        for one in {id(ledger): ledger, id(inner): inner}.values():
            dropped |= one.close(ignored)
        draft.dropped[path.name] = dropped
    first = next(iter(draft.stages.values())).sizes
    for name, stage in draft.stages.items():
        if stage.sizes != first:
            raise CheckpointError(f"{stage.source}: {name} is of other sizes or numerics than the first member")
    names = list(SUBJECTS) if first["subjects"] == len(SUBJECTS) else [str(i + 1) for i in range(first["subjects"])]
    draft.tables |= {"tokens": {"count": first["layers"], "channels": first["features"]}}
    draft.tables |= {"subjects": names, "numerics": f"x-transformers {told.pop()}"}
    return draft


def numerics_of(source: str, state: Mapping[str, Tensor], version: str | None) -> Numerics:
    """Tell by the gains, and by the version where one is given, how weights are to be computed with.

    Raises
    ------
    CheckpointError
        The gains lie between, the version is not theirs, or both old numerics are possible and none was given.
    """
    gains = [value for key, value in state.items() if key.startswith(_TRANSFORMER) and key.endswith(".g")]
    if not gains:
        raise CheckpointError(f"{source}: expected gains ({_TRANSFORMER}layers.*.g), got none")
    gain = float(np.median(np.abs(torch.cat([one.flatten() for one in gains]).float().numpy())))
    offset = gain < _NEAR
    if not offset and not (1 - _NEAR < gain < 1 + _NEAR):
        raise CheckpointError(
            f"{source}: expected gains near 0 (x-transformers {_NEW.versions}) or near 1 (before), got a median of "
            f"{gain:.2f}: what these weights compute cannot be told"
        )
    if version is None:
        if offset:
            return _NEW
        raise CheckpointError(
            f"{source}: the gains are near 1, as of x-transformers before 1.31.2, of which {_OLD.versions} and "
            f"{_BETWEEN.versions} compute differently with the same weights: find the version that they were trained "
            "with (its lock file or log) and give it as --x-transformers"
        )
    numerics = _by_version(version)
    if numerics.unit_offset != offset:
        raise CheckpointError(
            f"{source}: expected gains near {0 if numerics.unit_offset else 1} of x-transformers {version}, got a "
            f"median of {gain:.2f}, as {'1.31.2 and newer' if offset else 'before 1.31.2'}: the version is another one"
        )
    return numerics


def _by_version(version: str) -> Numerics:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise CheckpointError(f"--x-transformers: expected a version such as 1.31.2, got {version!r}")
    number = tuple(int(part) for part in version.split("."))
    if number >= _OFFSET_FROM:
        return _NEW
    return _BETWEEN if number >= _INTERLEAVED_FROM else _OLD


def _shape(
    source: str, state: Mapping[str, Tensor], sources: MirageEncodingFiles, numerics: Numerics
) -> FilmEncoderShape:
    queries, features = shape_of(source, state, "layer_poolers.text.query_tokens")
    subjects, hidden, parcels = shape_of(source, state, "head.weights")
    turned = shape_of(source, state, f"{_TRANSFORMER}rotary_pos_emb.inv_freq")[0]
    if features % sources.pool_heads or hidden % (4 * turned):
        raise CheckpointError(
            f"{source}: {features} features cannot have {sources.pool_heads} heads, or {hidden} hidden values heads of "
            f"{4 * turned}"
        )
    projected = shape_of(source, state, "projectors.text.net.weight")[0]
    if 3 * projected != hidden:
        raise CheckpointError(
            f"{source}: expected projections that make {hidden} values together, got 3 of {projected}: the modalities "
            "are not joined as in the published network"
        )
    return FilmEncoderShape(
        layers=sources.layers,
        features=features,
        queries=queries,
        pool_heads=sources.pool_heads,
        projected=projected,
        hidden=hidden,
        depth=count(state, f"{_TRANSFORMER}layers.") // 2,
        heads=hidden // (4 * turned),
        multiple=shape_of(source, state, f"{_TRANSFORMER}layers.1.1.ff.0.0.weight")[0] // hidden,
        places=shape_of(source, state, "temporal_encoder.time_pos_embed")[1],
        subjects=subjects,
        parcels=parcels,
        frames=sources.frames,
        volumes=sources.volumes,
        rotary=numerics.rotary,
        unit_offset=numerics.unit_offset,
    )


def _check_frequencies(source: str, state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    key = f"{_TRANSFORMER}rotary_pos_emb.inv_freq"
    expected = rotary_frequencies(sizes["hidden"] // sizes["heads"])
    if state[key].shape != expected.shape or not torch.allclose(state[key].float(), expected, rtol=1e-3):
        raise CheckpointError(f"{source}: {key}: expected powers of 10000 as the network turns by, got others")
