"""Fits a voxel encoder in the visit: tokens of the pictures of a pack's embedder to the betas of their trials."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from calibration.encoding.maps import MapPrior, fit_maps
from calibration.encoding.picture_space import PictureSpace, learn_picture_space
from rtdecode.decode.score.voxel_encoder import (
    ENCODER_PICTURES,
    ENCODER_SCHEMA,
    ENCODER_TENSORS,
    PictureResponses,
    VoxelEncoder,
    open_picture_responses,
    picture_tensors,
)
from rtdecode.errors import BundleError, CalibrationError
from rtdecode.evaluate.brain_judge import read_regions
from rtdecode.evaluate.evaluation import embedded
from rtdecode.evaluate.recorded_session import PX, load_pictures, read_betas
from rtdecode.packs import EnginePack, ParticipantBundle
from rtdecode.packs.participant_bundle import ENCODER, PARTICIPANT_SCHEMA
from rtdecode.packs.sealed import listed, seal
from rtdecode.statistics import column_correlations
from rtdecode.stimuli import picture_of, pictures_in

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
COMPONENTS = 48
FOLDS = 5
FEWEST_PICTURES = 2 * FOLDS


def fit_voxel_encoder(
    betas: Float32,
    pictures: Sequence[str],
    tokens: NDArray[np.floating[Any]],
    *,
    parts: Sequence[NDArray[np.int64]] | None = None,
    voxels: int = 15_000,
    seed: int = 0,
) -> VoxelEncoder:
    """Fit an encoder, and measure each voxel on pictures that its fit had not seen.

    Parameters
    ----------
    betas : ndarray of shape (n, v), float32
        Of each trial; a voxel with any that is no number is left out.
    pictures : sequence of n str
        What each trial showed; repeats are held out together.
    tokens : ndarray of shape (n, ...)
        Of each trial's picture.
    parts : sequence of ndarray of int64, or None
        Trials that are held out together; None: five sets of pictures.
    voxels : int
        So many are kept at most, those that are predicted best.
    seed : int
        Of the sets of pictures, and of the two halves of the voxels.

    Raises
    ------
    CalibrationError
        There are too few different pictures, or no voxel has a number in every trial.
    """
    names, shown = np.unique(np.asarray(pictures), return_inverse=True)
    if parts is None and len(names) < FEWEST_PICTURES:
        raise CalibrationError(f"expected {FEWEST_PICTURES} different pictures or more, got {len(names)}")
    usable = np.flatnonzero(np.isfinite(betas).all(0) & (betas.std(0) > 0))
    if not len(usable):
        raise CalibrationError("expected voxels with an estimate in every trial, got none")
    rng = np.random.default_rng(seed)
    if parts is None:
        fold = rng.permutation(len(names)) % FOLDS
        parts = [np.flatnonzero(fold[shown] == number) for number in range(FOLDS)]
    flat = np.asarray(tokens, np.float64).reshape(len(tokens), -1)
    responses = betas[:, usable]
    predicted, measured = np.zeros(responses.shape, np.float32), np.zeros(responses.shape, np.float32)
    for part in parts:
        left = np.setdiff1d(np.arange(len(betas)), part)
        found = _Fitted(responses[left], flat[left])(flat[part])
        # the mean of the others lies away from that of the part: over all parts that alone would correlate below 0
        predicted[part], measured[part] = found - found.mean(0), responses[part] - responses[part].mean(0)
    held_out = column_correlations(measured, predicted)
    kept = np.sort(np.argsort(-held_out, kind="stable")[:voxels])
    whole = _Fitted(responses[:, kept], flat)
    selects = np.zeros(len(kept), bool)
    selects[rng.permutation(len(kept))[: len(kept) // 2]] = True
    return VoxelEncoder(
        voxels=usable[kept].astype(np.int64),
        centre=whole.centre,
        scale=whole.scale,
        basis=whole.space.basis.astype(np.float32),
        token_mean=whole.space.token_mean.astype(np.float32),
        weights=whole.weights,
        constant=whole.constant,
        held_out=held_out[kept].astype(np.float32),
        selects=selects,
    )


def fit_session(session: Path, images: Path, pack: EnginePack, regions: Sequence[str] = ()) -> PictureResponses:
    """Fit an encoder to the final betas of a session's trials whose picture is at hand, and predict all pictures by it.

    Parameters
    ----------
    session : Path
        Session folder.
    images : Path
        Pictures named by stimulus; those that were not shown may be candidates in later trials.
    pack : EnginePack
        Whose embedder describes them.
    regions : sequence of str
        ``NAME=MASK``.

    Raises
    ------
    CalibrationError
        There are too few trials of different pictures.
    SettingsError
        A mask cannot be read or lies on another grid than the session.
    """
    shown = [(beta, path) for beta in read_betas(session).values() if (path := picture_of(images, beta.stimulus or ""))]
    if not shown:
        raise CalibrationError(f"{session}: expected trials whose picture is in {images}, got none")
    known = pictures_in(images)
    paths = sorted({*known.values(), *(path for _, path in shown)})
    tokens = dict(zip(paths, embedded(pack, load_pictures(paths, PX)), strict=True))
    encoder = fit_voxel_encoder(
        np.stack([beta.values for beta, _ in shown]),
        [path.stem for _, path in shown],
        np.stack([tokens[path] for _, path in shown]),
    )
    return PictureResponses(
        encoder=encoder,
        names=tuple(known),
        predicted=encoder.predict(np.stack([tokens[path] for path in known.values()])),
        regions=read_regions(session, encoder, regions),
    )


def write_voxel_encoder(
    folder: Path, encoder: VoxelEncoder, about: dict[str, Any], responses: PictureResponses | None = None
) -> str:
    """Seal an encoder in a folder, with what it is of and what it predicts of pictures; returns its identity."""

    def write(target: Path) -> None:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in encoder.tensors().items()}, target / ENCODER_TENSORS
        )
        if responses is not None:
            save_file(picture_tensors(responses), target / ENCODER_PICTURES)
        (target / "encoder.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    return seal(folder, ENCODER_SCHEMA, write)


def carry_encoder(bundle: ParticipantBundle, encoder: Path, session: str, out: Path) -> str:
    """Seal a copy of a bundle with an encoder in it, for sessions to choose among candidates by.

    Parameters
    ----------
    bundle : ParticipantBundle
    encoder : Path
        Sealed, with what it predicts of pictures.
    session : str
        Identifier of the session that it was fitted to.
    out : Path
        Folder of the new bundle.

    Returns
    -------
    str
        Identity of the new bundle.

    Raises
    ------
    BundleError
        The encoder is of another session's voxels, or holds no pictures.
    """
    if bundle.provenance.session != session:
        raise BundleError(
            f"{bundle.folder}: expected the bundle of session {session}, whose voxels the encoder predicts, got that "
            f"of session {bundle.provenance.session}"
        )
    open_picture_responses(encoder)

    def write(folder: Path) -> None:
        for name in listed(bundle.folder):
            if not name.startswith(f"{ENCODER}/"):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(bundle.folder / name, folder / name)
        shutil.copytree(encoder, folder / ENCODER)

    return seal(out, PARTICIPANT_SCHEMA, write)


class _Fitted:
    """Maps of some trials; called with flattened tokens it predicts responses in their own units."""

    def __init__(self, responses: Float32, flat: Float64) -> None:
        self.centre = responses.mean(0)
        spread = responses.std(0)
        self.scale = np.where(spread > 0, spread, 1.0).astype(np.float32)
        count = min(COMPONENTS, len(np.unique(flat, axis=0)) - 1, flat.shape[1])
        self.space: PictureSpace = learn_picture_space(flat, [slice(None)], [count])
        prior = MapPrior(covariance=np.diag(np.maximum(self.space.spectrum, 1e-6)))
        maps = fit_maps(self.space(flat), (responses - self.centre) / self.scale, prior)
        self.weights, self.constant = maps.weights, maps.constant

    def __call__(self, flat: Float64) -> Float32:
        standard = self.space(flat) @ self.weights + self.constant
        return np.asarray(standard * self.scale + self.centre, np.float32)
