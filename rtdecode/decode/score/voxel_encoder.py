"""Which of several pictures fits a measured response best: what an encoder predicts of each, against the response.

The voxels that select a picture never judge it: an encoder's voxels are in two disjoint halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.score.adapter import components_of
from rtdecode.decode.score.from_tensors import from_tensors
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs.sealed import read_tensors, verify

ENCODER_SCHEMA = "rtdecode.voxel-encoder/1"
ENCODER_TENSORS = "encoder.safetensors"
ENCODER_PICTURES = "pictures.safetensors"
REGION = "region."
"""Before the name of a region's tensor in the file of pictures."""
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
FEWEST_VOXELS = 10
"""Of a region that an agreement rests on."""
ALL = "all"
"""Name of all voxels of a half together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VoxelEncoder:
    """Tensors of a fitted encoder: tokens of a picture to the response of each voxel.

    Attributes
    ----------
    voxels : ndarray of shape (s,), int64
        Places in the mask's vector.
    centre, scale : ndarray of shape (s,), float32
        Of the betas that it was fitted to.
    basis : ndarray of shape (k, m), float32
        Flattened tokens, less their mean, to components.
    token_mean : ndarray of shape (m,), float32
    weights : ndarray of shape (k, s), float32
        Components to standardised responses.
    constant : ndarray of shape (s,), float32
        Standardised response to the average picture.
    held_out : ndarray of shape (s,), float32
        Correlation of each voxel with what was predicted of pictures that the fit had not seen.
    selects : ndarray of shape (s,), bool
        Voxels that select; the others judge.
    """

    voxels: NDArray[np.int64]
    centre: Float32
    scale: Float32
    basis: Float32
    token_mean: Float32
    weights: Float32
    constant: Float32
    held_out: Float32
    selects: NDArray[np.bool_]

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    def predict(self, tokens: NDArray[np.floating[Any]]) -> Float32:
        """Standardised responses (n, s) to pictures with tokens (n, ...)."""
        components = components_of(tokens, self.basis, self.token_mean)
        return np.asarray(components @ self.weights + self.constant, np.float32)

    def standardized(self, beta: NDArray[np.floating[Any]]) -> Float32:
        """Standardised responses (..., s) of betas (..., v) of the mask."""
        return np.asarray((beta[..., self.voxels] - self.centre) / self.scale, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureResponses:
    """What an encoder predicts of pictures that have names.

    Attributes
    ----------
    encoder : VoxelEncoder
    names : tuple of n str
    predicted : ndarray of shape (n, s), float32
        Standardised responses.
    regions : mapping of str to array of shape (s,), bool
        Which of the encoder's voxels each holds.
    """

    encoder: VoxelEncoder
    names: tuple[str, ...]
    predicted: Float32
    regions: Mapping[str, NDArray[np.bool_]]

    def choose(self, beta: NDArray[np.floating[Any]], candidates: Sequence[str]) -> CandidateScore:
        """Say which of some pictures fits a response (v,) best; all others are decoys.

        Raises
        ------
        EngineError
            As of `score_candidates`.
        """
        rows = [self.names.index(name) for name in candidates]
        decoys = np.delete(self.predicted, rows, 0)
        return score_candidates(self.encoder, beta, self.predicted[rows], decoys=decoys, regions=self.regions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CandidateScore:
    """How n pictures fit one response.

    Attributes
    ----------
    agreement : mapping of str to array of shape (n,)
        Correlation over the voxels of each region that select; ``all``: over all that do.
    chosen : int
        The picture that fits best.
    margin : float
        Its agreement less that of the next best; nan where there is one picture.
    p_decoy : float
        How often a decoy fits at least as well as the chosen one; corrected for the choice, since so many decoys are
        drawn at a time. 1 without decoys.
    judged : mapping of str to float
        Agreement of the chosen picture over the voxels that judge, which had no part in the choice.
    """

    agreement: Mapping[str, Float64]
    chosen: int
    margin: float
    p_decoy: float
    judged: Mapping[str, float]


def score_candidates(
    encoder: VoxelEncoder,
    beta: NDArray[np.floating[Any]],
    predicted: Float32,
    *,
    decoys: Float32 | None = None,
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
) -> CandidateScore:
    """Compare what is predicted of pictures with a response.

    Parameters
    ----------
    encoder : VoxelEncoder
    beta : ndarray of shape (v,)
        Response, percent signal change per voxel of the mask.
    predicted : ndarray of shape (n, s), float32
        `VoxelEncoder.predict` of the candidates.
    decoys : ndarray of shape (m, s), float32, or None
        The same of pictures that were not shown.
    regions : mapping of str to array of shape (s,), bool
        Which of the encoder's voxels each holds.

    Raises
    ------
    EngineError
        There is no candidate, or fewer than half of the voxels have an estimate.
    """
    if not len(predicted):
        raise EngineError("expected one candidate picture at least, got none")
    response = encoder.standardized(beta)
    known = np.isfinite(response)
    if 2 * known.sum() < len(known):
        raise EngineError(f"expected an estimate in at least half of {len(known)} voxels, got {known.sum()}")
    members = {ALL: np.ones(len(known), bool), **(regions or {})}
    selecting = {name: one & encoder.selects & known for name, one in members.items()}
    judging = {name: one & ~encoder.selects & known for name, one in members.items()}
    agreement = {
        name: agreements(predicted[:, some], response[some])
        for name, some in selecting.items()
        if some.sum() >= FEWEST_VOXELS or name == ALL
    }
    every = agreement[ALL]
    order = np.argsort(-every, kind="stable")
    chosen = int(order[0])
    return CandidateScore(
        agreement=agreement,
        chosen=chosen,
        margin=float(every[order[0]] - every[order[1]]) if len(order) > 1 else float("nan"),
        p_decoy=_p_decoy(float(every[chosen]), decoys, selecting[ALL], response, len(predicted)),
        judged={
            name: float(agreements(predicted[chosen : chosen + 1, some], response[some])[0])
            for name, some in judging.items()
            if some.sum() >= FEWEST_VOXELS
        },
    )


def agreements(predicted: NDArray[np.floating[Any]], response: NDArray[np.floating[Any]]) -> Float64:
    """Pearson correlation over voxels of each prediction (n, s) with one response (s,); 0 where one does not vary."""
    left = predicted - predicted.mean(1, keepdims=True, dtype=np.float64)
    right = response - response.mean(dtype=np.float64)
    scale = np.linalg.norm(left, axis=1) * np.linalg.norm(right)
    return np.asarray(np.where(scale > 0, left @ right / np.where(scale > 0, scale, 1.0), 0.0))


def identify(predicted: Float32, responses: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Place of each response's own picture among all by agreement, 1 is best (Kay et al. 2008).

    Parameters
    ----------
    predicted : ndarray of shape (n, s)
        Of each picture of the gallery.
    responses : ndarray of shape (n, s)
        Row i is of picture i; both as `VoxelEncoder` standardises them.
    """
    found = np.stack([agreements(predicted, one) for one in responses])
    return np.asarray(1 + (found > np.diag(found)[:, None]).sum(1), np.int64)


def open_voxel_encoder(folder: Path) -> VoxelEncoder:
    """Open a sealed encoder.

    Raises
    ------
    BundleError
        There is none, its content is not what its manifest says, or a tensor is missing.
    """
    verify(folder, ENCODER_SCHEMA)
    return from_tensors(VoxelEncoder, read_tensors(folder / ENCODER_TENSORS), part="voxel encoder")


def open_picture_responses(folder: Path) -> PictureResponses:
    """Open a sealed encoder with what it predicts of pictures.

    Raises
    ------
    BundleError
        As of `open_voxel_encoder`, or it holds no pictures: it was fitted by an earlier version.
    """
    encoder = open_voxel_encoder(folder)
    path = folder / ENCODER_PICTURES
    if not path.is_file():
        raise BundleError(f"{folder}: expected what the encoder predicts of pictures ({path.name}): fit it anew")
    tensors = read_tensors(path)
    predicted = tensors.get("predicted", np.zeros((0, 0), np.float32))
    names = tuple(bytes(tensors.get("names", np.zeros(0, np.uint8))).decode().split("\n"))
    if predicted.shape != (len(names), len(encoder.voxels)):
        raise BundleError(
            f"{path}: expected predictions of {len(names)} pictures in {len(encoder.voxels)} voxels, got an array of "
            f"shape {predicted.shape}"
        )
    regions = {name.removeprefix(REGION): one for name, one in tensors.items() if name.startswith(REGION)}
    return PictureResponses(
        encoder=encoder,
        names=names,
        predicted=predicted.astype(np.float32),
        regions={name: one.astype(bool) for name, one in regions.items()},
    )


def picture_tensors(responses: PictureResponses) -> dict[str, NDArray[Any]]:
    """Return what `open_picture_responses` reads beside the encoder's own tensors."""
    names = np.frombuffer("\n".join(responses.names).encode(), np.uint8)
    regions = {REGION + name: one.astype(np.uint8) for name, one in responses.regions.items()}
    return {"names": names, "predicted": responses.predicted, **regions}


def _p_decoy(best: float, decoys: Float32 | None, some: NDArray[np.bool_], response: Float32, candidates: int) -> float:
    if decoys is None or not len(decoys):
        return 1.0
    found = agreements(decoys[:, some], response[some])
    single = (1 + np.count_nonzero(found >= best)) / (1 + len(found))
    return float(1 - (1 - single) ** candidates)
