"""A participant's bundle that carries the network which was trained for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from safetensors.numpy import save_file

from rtdecode.decode.families.mindeye1.mindeye1_description import MindEye1Description
from rtdecode.decode.score.adapter import Adapter, adapter_from
from rtdecode.errors import BundleError
from rtdecode.packs import EnginePack, ParticipantBundle
from rtdecode.packs.participant_bundle import NETWORK, PARTICIPANT_SCHEMA, NetworkFigures, write_provenance
from rtdecode.packs.sealed import listed, seal

_ADAPTER = "adapter.safetensors"
_OWN = ("brain", "prior", "low_level")


def carry(bundle: ParticipantBundle, network: EnginePack, out: Path, *, figures: NetworkFigures | None = None) -> str:
    """Seal a copy of a bundle with a network in it: a pack with ``brain``, ``prior`` and, if any, ``low_level``.

    The adapter is widened to the voxels of the network, and gives the same components as before: scores and evidence
    stay those of the calibration.

    Parameters
    ----------
    bundle : ParticipantBundle
    network : EnginePack
        Of kind mindeye1, with the scaling of its betas.
    out : Path
        Folder of the new bundle.
    figures : NetworkFigures or None
        For its provenance.

    Returns
    -------
    str
        Identity of the new bundle.

    Raises
    ------
    BundleError
        The network is of another mask, or does not say how its betas were scaled.
    """
    said = network.described(MindEye1Description)
    voxels = said.size("brain", "voxels")
    if not said.scaling:
        raise BundleError(f"network {network.name}: expected the scaling of its betas, got none: import with --scaling")
    if voxels != bundle.provenance.mask_voxels:
        raise BundleError(
            f"network {network.name}: takes {voxels} voxels, the mask of {bundle.folder} has "
            f"{bundle.provenance.mask_voxels}: train it on betas of that mask"
        )
    if strange := sorted(said.stages.keys() - set(_OWN)):
        raise BundleError(
            f"network {network.name}: expected brain, prior and low_level alone, got {', '.join(strange)} too: import "
            "it without a generator, which is of the pack"
        )
    scaling = network.tensors(said.scaling)
    adapter = widened(adapter_from(bundle.adapter), scaling["mean"], scaling["scale"])
    return reseal(bundle, network.folder, out, adapter=adapter, figures=figures)


def reseal(
    bundle: ParticipantBundle,
    network: Path | None,
    out: Path,
    *,
    adapter: Adapter | None = None,
    figures: NetworkFigures | None = None,
) -> str:
    """Seal a copy of a bundle with a network in it, or none; the rest stays but for what is given.

    Parameters
    ----------
    bundle : ParticipantBundle
    network : Path or None
        Sealed pack; plans stay behind.
    out : Path
        Folder of the new bundle.
    adapter : Adapter or None
    figures : NetworkFigures or None
        For its provenance.

    Returns
    -------
    str
        Identity of the new bundle.
    """

    def write(folder: Path) -> None:
        for name in listed(bundle.folder):
            if not name.startswith(f"{NETWORK}/"):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(bundle.folder / name, folder / name)
        if adapter is not None:
            save_file(adapter.tensors(), folder / _ADAPTER)
        if figures is not None:
            write_provenance(folder, replace(bundle.provenance, network=figures))
        if network is not None:
            shutil.copytree(network, folder / NETWORK, ignore=shutil.ignore_patterns("plans"))

    return seal(out, PARTICIPANT_SCHEMA, write)


def widened(adapter: Adapter, mean: np.ndarray, scale: np.ndarray) -> Adapter:
    """Return an adapter of all voxels of a mask, on another scale, that gives the same components.

    Parameters
    ----------
    adapter : Adapter
    mean, scale : ndarray of shape (voxels,)
    """
    ratio = (scale[adapter.voxels] / adapter.scale)[:, None]
    weights = np.zeros((len(mean), adapter.weights.shape[1]), np.float32)
    weights[adapter.voxels] = adapter.weights * ratio
    shift = (mean[adapter.voxels] - adapter.mean) / adapter.scale
    return Adapter(
        voxels=np.arange(len(mean), dtype=np.int64),
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=weights,
        intercept=np.asarray(adapter.intercept + shift @ adapter.weights, np.float32),
        basis=adapter.basis,
        token_mean=adapter.token_mean,
        r2=adapter.r2,
        group_r2=adapter.group_r2,
    )
