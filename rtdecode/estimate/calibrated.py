"""What a calibration hands to later visits: its space, and what its runs taught the estimator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rtdecode.errors import BundleError, SettingsError
from rtdecode.estimate.glm import Expectation, Scales
from rtdecode.estimate.voxels import VoxelModel
from rtdecode.packs import EnginePack, ParticipantBundle, open_participant
from rtdecode.packs.sealed import listed
from rtdecode.settings import EstimateSettings, Settings

MODEL = "estimate.safetensors"
REFERENCE = "reference.nii.gz"
MASK = "mask.nii.gz"
_FREE = ("mask", "motion_file", "registration", "regions", "parcels", "revise_at_s", "censor_fd_mm")
"""Settings that may differ between the visits of a participant."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """What finished runs taught.

    Attributes
    ----------
    expectation : Expectation
        Of any further run.
    voxels : VoxelModel or None
        Bins of each voxel, where voxels differ.
    """

    expectation: Expectation
    voxels: VoxelModel | None

    def save(self, path: Path, settings: EstimateSettings) -> None:
        """Write it, with the settings it holds for."""
        tensors: dict[str, NDArray[Any]] = {"lag_s": np.array(self.expectation.lag_s)}
        if self.expectation.scales is not None:
            tensors["scales"] = np.array(list(asdict(self.expectation.scales).values()))
        if self.expectation.mean_response is not None:
            tensors["mean_response"] = self.expectation.mean_response
        if self.voxels is not None:
            tensors |= {spec.name: getattr(self.voxels, spec.name) for spec in fields(VoxelModel)}
        draft = path.with_suffix(".draft")
        draft.write_bytes(save(tensors, metadata={"settings": json.dumps(_fixed(settings))}))
        draft.replace(path)


def _fixed(settings: EstimateSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in _FREE}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """The estimator's part of a ParticipantBundle.

    Attributes
    ----------
    reference : array of shape (i, j, k), float32
    affine : array of shape (4, 4), float64
        Voxel indices of the reference to RAS mm.
    mask : array of shape (i, j, k), bool
        Its C order is the order of all betas.
    learned : Learned
    settings : mapping
        Those of the calibration that a later visit must share.
    """

    reference: NDArray[np.float32]
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_]
    learned: Learned
    settings: Mapping[str, Any]

    def disagreements(self, settings: EstimateSettings) -> list[str]:
        """Say in which settings a session would compute other betas than the calibration did."""
        own = _fixed(settings)
        return [
            f"$.estimate.{name}: expected {wanted!r} as in the calibration of decode.bundle, got {own.get(name)!r}"
            for name, wanted in self.settings.items()
            if own.get(name) != wanted
        ]


def open_calibrated(bundle: ParticipantBundle) -> Calibrated:
    """Read the estimator's part of a ParticipantBundle.

    Raises
    ------
    BundleError
        It lacks a part.
    """
    folder = bundle.folder
    try:
        reference: Any = nib.load(folder / REFERENCE)
        mask: Any = nib.load(folder / MASK)
        with safe_open(folder / MODEL, framework="numpy") as stored:
            names = list(stored.keys())
            tensors = {name: stored.get_tensor(name) for name in names}
            settings = json.loads(stored.metadata()["settings"])
    except (OSError, ImageFileError, SafetensorError) as error:
        raise BundleError(f"{folder}: expected {REFERENCE}, {MASK} and {MODEL}: {error}; calibrate again") from None
    scales = None
    if "scales" in tensors:
        scales = Scales(**dict(zip((spec.name for spec in fields(Scales)), tensors["scales"].tolist(), strict=True)))
    voxels = None
    if "hrf" in tensors:
        voxels = VoxelModel(**{spec.name: tensors[spec.name] for spec in fields(VoxelModel)})
    return Calibrated(
        reference=np.asarray(reference.dataobj, np.float32),
        affine=np.asarray(reference.affine, np.float64),
        mask=np.asarray(mask.dataobj) > 0,
        learned=Learned(
            expectation=Expectation(
                scales=scales, lag_s=float(tensors["lag_s"]), mean_response=tensors.get("mean_response")
            ),
            voxels=voxels,
        ),
        settings=settings,
    )


def calibration_of(settings: Settings, pack: EnginePack) -> Calibrated | None:
    """Return the earlier visit that ``decode.bundle`` names; None if there is none.

    Raises
    ------
    BundleError
        It is missing, altered or incomplete.
    SettingsError
        It is of another participant or pack, or its betas were computed otherwise.
    """
    if settings.decode.bundle is None:
        return None
    bundle = open_participant(settings.decode.bundle)
    calibrated = open_calibrated(bundle)
    problems = strangeness(bundle, expected_provenance(settings, pack))
    problems += calibrated.disagreements(settings.estimate)
    if problems:
        raise SettingsError(problems)
    return calibrated


def expected_provenance(settings: Settings, pack: EnginePack) -> dict[str, str]:
    """Return what the provenance of every bundle of a session must say."""
    return {"pack": pack.identity, "participant": settings.session.participant}


def same_betas(one: ParticipantBundle, other: ParticipantBundle) -> bool:
    """Whether both read the very same betas: of the same voxels, estimated in the same way."""
    digests = [listed(bundle.folder) for bundle in (one, other)]
    return all(digests[0].get(name) == digests[1].get(name) for name in (MASK, REFERENCE, MODEL))


def strangeness(bundle: ParticipantBundle, wanted: dict[str, str]) -> list[str]:
    """Say where the provenance of a bundle is another than `wanted`."""
    return [
        f"{bundle.folder}: expected a calibration of {name} {value}, got {getattr(bundle.provenance, name)}"
        for name, value in wanted.items()
        if getattr(bundle.provenance, name) != value
    ]
