"""Judges decoded pictures by the brain: what an encoder predicts of them beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from rtdecode.decode.score.voxel_encoder import ALL, FEWEST_VOXELS, VoxelEncoder, agreements, open_voxel_encoder
from rtdecode.derivatives import BRAIN_MASK
from rtdecode.errors import SettingsError
from rtdecode.evaluate.recorded_session import Pairs, RecordedBeta, read_betas


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BrainJudge:
    """An encoder and the betas of a session.

    Attributes
    ----------
    encoder : VoxelEncoder
    betas : mapping of str to RecordedBeta
        By trial.
    regions : mapping of str to array of shape (s,), bool
        Which of the encoder's voxels each region holds.
    """

    encoder: VoxelEncoder
    betas: Mapping[str, RecordedBeta]
    regions: Mapping[str, NDArray[np.bool_]]

    def correlations(self, pairs: Pairs, tokens: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Correlate, over the voxels that judge, prediction and mean response to the repeats of each picture.

        Parameters
        ----------
        pairs : Pairs
        tokens : ndarray of shape (n, ...)
            Of a picture of each trial.

        Returns
        -------
        dict of str to array of shape (n,), float64
            By region; nan for a trial without a beta.
        """
        predicted = self.encoder.predict(tokens)
        repeats: dict[str, list[NDArray[np.float32]]] = {}
        for beta in self.betas.values():
            if beta.stimulus is not None:
                repeats.setdefault(beta.stimulus, []).append(self.encoder.standardized(beta.values))
        measured = {name: np.nanmean(some, axis=0) for name, some in repeats.items()}
        found = {}
        for name, members in {ALL: np.ones(len(self.encoder.voxels), bool), **self.regions}.items():
            judging = members & ~self.encoder.selects
            if judging.sum() < FEWEST_VOXELS:
                continue
            each = np.full(len(pairs.trials), np.nan)
            for place, stimulus in enumerate(pairs.stimuli):
                if stimulus in measured:
                    known = judging & np.isfinite(measured[stimulus])
                    each[place] = agreements(predicted[place : place + 1, known], measured[stimulus][known])[0]
            found[name] = each
        return found


def open_judge(folder: Path, session: Path, regions: Sequence[str]) -> BrainJudge:
    """Open an encoder for a session.

    Parameters
    ----------
    folder : Path
        Of ``rtdecode fit-encoder``.
    session : Path
        Session folder.
    regions : sequence of str
        ``NAME=MASK``.

    Raises
    ------
    BundleError
        The encoder cannot be used.
    SettingsError
        A mask cannot be read or lies on another grid, or the session has no betas for this encoder.
    """
    encoder, betas = open_voxel_encoder(folder), read_betas(session)
    mask = _brain_mask(session)
    sizes = {len(one.values) for one in betas.values()}
    if sizes != {int(mask.sum())} or encoder.voxels.max() >= mask.sum():
        raise SettingsError(
            [f"{session}: expected betas of the {int(mask.sum())} voxels of its mask, and an encoder of these, got "
             f"{sorted(sizes) or 'none'} and voxels up to {int(encoder.voxels.max())}"]
        )  # fmt: skip
    return BrainJudge(encoder=encoder, betas=betas, regions=read_regions(session, encoder, regions))


def read_regions(session: Path, encoder: VoxelEncoder, regions: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return which of an encoder's voxels each region holds; `regions` are ``NAME=MASK``.

    Raises
    ------
    SettingsError
        A mask cannot be read or lies on another grid than the session.
    """
    mask = _brain_mask(session)
    places = np.argwhere(mask)[encoder.voxels]
    found = {}
    for text in regions:
        name, _, path = text.partition("=")
        image = _image(f"--region {name}", Path(path))
        if not path or image.shape != mask.shape:
            raise SettingsError([f"--region {text}: expected NAME=MASK of shape {mask.shape}, got {image.shape}"])
        found[name] = np.asarray(image[tuple(places.T)] > 0)
    return found


def _brain_mask(session: Path) -> NDArray[np.bool_]:
    paths = sorted(session.glob(f"sub-*/ses-*/**/*_{BRAIN_MASK}"))
    if not paths:
        raise SettingsError([f"{session}: expected the mask of its betas (*_{BRAIN_MASK}), found none"])
    return np.asarray(_image(str(session), paths[0]) > 0)


def _image(what: str, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(nib.load(path).dataobj)
    except (OSError, ImageFileError) as error:
        raise SettingsError([f"{what}: expected a NIfTI image: {error}"]) from None
