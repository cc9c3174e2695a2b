"""Participant bundles: what a calibration has learned of a participant, in a sealed folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import msgspec
from numpy.typing import NDArray

from rtdecode.errors import BundleError
from rtdecode.packs.sealed import check_numbers, read_tensors, verify
from rtdecode.typed import Table, checked

PARTICIPANT_SCHEMA = "rtdecode.participant-bundle/3"
_PROVENANCE = "provenance.json"
_CURVE = "learning_curve.json"
NETWORK = "network"
"""Folder of a network that the bundle carries: an engine pack of its own."""
ENCODER = "encoder"
"""Folder of an encoder of pictures that the bundle carries, sealed by itself."""
T = TypeVar("T")


class Projection(Table, frozen=True, kw_only=True):
    """What is expected of the percentile rank after more trials.

    Attributes
    ----------
    trials : int
        Collected by then.
    minutes : float
        From now.
    percentile : float
        Expected.
    interval : tuple of float
        80 % interval.
    """

    trials: int
    minutes: float
    percentile: float
    interval: tuple[float, float]


class CurvePoint(Table, frozen=True, kw_only=True):
    """One point of the learning curve.

    Attributes
    ----------
    trials : int
        Collected by then.
    percentile : float or None
        Held-out mean percentile rank of the shown among the stimuli held out with it, by the encoding model; .5 is
        chance, 1 perfect. None where there are too few trials.
    interval : tuple of float
        Its 95 % interval; empty without a percentile.
    p_value : float or None
        How often shuffled labels do as well, by one ridge of all voxels.
    top1, top1_chance : float or None
        Share of trials whose stimulus comes first among those held out with it, and how many would by chance.
    top1_interval : tuple of float
        95 % interval of the former.
    two_way : float or None
        Share of pairs of trials, held out together, whose two stimuli are matched with them rightly; .5 is chance.
    two_way_interval : tuple of float
        Its 95 % interval.
    ceiling : float or None
        Percentile rank of a decoder that knew each response exactly; None where too few stimuli were repeated.
    ceiling_interval : tuple of float
        Its 95 % interval.
    projected : tuple of Projection
        What more trials would bring.
    advice : {"", "go on", "enough", "no signal"}
        Whether more trials are worth their time; empty where that is not known.
    why : str
        The reason, in a line.
    """

    trials: int
    percentile: float | None = None
    interval: tuple[float, ...] = ()
    p_value: float | None = None
    top1: float | None = None
    top1_chance: float | None = None
    top1_interval: tuple[float, ...] = ()
    two_way: float | None = None
    two_way_interval: tuple[float, ...] = ()
    ceiling: float | None = None
    ceiling_interval: tuple[float, ...] = ()
    projected: tuple[Projection, ...] = ()
    advice: Literal["", "go on", "enough", "no signal"] = ""
    why: str = ""


class Figures(Table, frozen=True, kw_only=True):
    """Held-out figures and choices of a calibration.

    Attributes
    ----------
    trials, voxels, mask_voxels : int
        Trials learned from, voxels used, voxels of the mask.
    earlier_trials : int
        Trials of an earlier visit among these.
    earlier_session : str
        Its session; empty without one.
    null_trials : int
        Trials that showed a content-free picture.
    null : {"null trials", "repeats", "differences"}
        Which responses without a picture evidence was learned from; see `calibration.nulls`.
    null_statistics : int
        How many of these.
    rest : int
        Stretches of rest that signal is compared with.
    components : list of int
        Of each token group.
    noise_models : dict of str to float
        Weight of each noise model of the encoding model.
    group_prior : str
        Identity of the group prior; empty without one.
    group_weight : float
        Weight, by held-out trials, of what it expects; the rest is learned from this participant alone.
    heads : dict of str to float
        Weight of each head in the category scores.
    group_r2 : list of float
        Held-out explained variance of each token group.
    live_components : int
        Those that are predicted at all.
    category_accuracy, category_p : float
        Held-out share of trials whose category is named right, and how often shuffled labels reach it.
    percentile, percentile_p : float or None
        Of the last `CurvePoint`.
    percentile_interval : tuple of float
        The same.
    decoder_percentile : float or None
        Held-out percentile rank by the decoder itself.
    leave_out : {"trial", "run"}
        What was held out together.
    seed : int
        Of the permutations and noise.
    categories, stimuli : list of str
        What was told apart, and what was shown.
    """

    trials: int
    null_trials: int
    null: Literal["null trials", "repeats", "differences"]
    null_statistics: int
    rest: int
    voxels: int
    mask_voxels: int
    components: list[int]
    noise_models: dict[str, float]
    heads: dict[str, float]
    group_r2: list[float]
    live_components: int
    category_accuracy: float
    category_p: float
    percentile: float | None
    percentile_interval: tuple[float, ...]
    percentile_p: float | None
    decoder_percentile: float | None
    leave_out: Literal["trial", "run"]
    seed: int
    categories: list[str]
    stimuli: list[str]
    group_prior: str
    group_weight: float
    earlier_trials: int = 0
    earlier_session: str = ""


class NetworkFigures(Table, frozen=True, kw_only=True):
    """What fine-tuning brought, from trials that were set apart in turn before anything was fitted.

    Attributes
    ----------
    rank : int
        Of the additions; 0: every weight was trained.
    steps : int
        Kept; 0: none was surely better than the ridge alone, and the bundle carries no network.
    seed : int
        Of what is added and of the batches.
    trials, sets : int
        Judged, and in how many sets.
    percentile_ridge, percentile : float
        Percentile rank of the picture shown among those that were set apart with it, by the tokens that clients are
        sent: of the closed-form start, and fine-tuned.
    percentile_gain : (float, float)
        95 % interval of their difference.
    error_saved : float
        Share of the start's squared error that fine-tuning takes away: of the tokens, or of what the prior makes of
        them.
    error_saved_interval : (float, float)
        Its 95 % interval.
    """

    rank: int
    steps: int
    seed: int
    trials: int
    sets: int
    percentile_ridge: float
    percentile: float
    percentile_gain: tuple[float, float]
    error_saved: float
    error_saved_interval: tuple[float, float]


class Provenance(Figures, frozen=True, kw_only=True):
    """Content of ``provenance.json``: the figures, and what they are of.

    Attributes
    ----------
    pack, pack_name : str
        Identity and name of the pack whose tokens were the targets.
    participant, session : str
        BIDS label, and identifier of the session.
    left_out : list of str
        Trials that could not be used, each with its reason.
    network : NetworkFigures or None
        Of a bundle that ``rtdecode engines finetune`` has made.
    """

    pack: str
    pack_name: str
    participant: str
    session: str
    left_out: list[str]
    network: NetworkFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParticipantBundle:
    """A verified participant bundle.

    Its folder holds ``adapter.safetensors``, ``encoding.safetensors``, ``evidence.safetensors``,
    ``statistics.safetensors``, ``mask.nii.gz``, ``reference.nii.gz``, ``learning_curve.json`` and ``provenance.json``.

    Attributes
    ----------
    folder : Path
    identity : str
        SHA-256 of its manifest.
    adapter : mapping of str to array
        Tensors of the ridge adapter; see `calibration`.
    encoding, evidence : mapping of str to array
        Tensors of the encoding model and of the evidence; see `calibration`.
    provenance : Provenance
    network : Path or None
        Engine pack with the participant's own network, where the bundle carries one.
    encoder : Path or None
        Folder of what predicts the participant's voxels of pictures, where the bundle carries it.
    """

    folder: Path
    identity: str
    adapter: Mapping[str, NDArray[Any]]
    encoding: Mapping[str, NDArray[Any]]
    evidence: Mapping[str, NDArray[Any]]
    provenance: Provenance
    network: Path | None = None
    encoder: Path | None = None


def open_participant(folder: Path) -> ParticipantBundle:
    """Open a participant bundle.

    Raises
    ------
    BundleError
        It is missing, its content is not what its manifest says, a tensor holds a number that is none, or its
        provenance or learning curve is not what this version reads; the place is named.
    """
    identity = verify(folder, PARTICIPANT_SCHEMA)
    check_numbers(folder)
    _read(folder / _CURVE, list[CurvePoint])
    return ParticipantBundle(
        folder=folder,
        identity=identity,
        adapter=MappingProxyType(read_tensors(folder / "adapter.safetensors")),
        encoding=MappingProxyType(read_tensors(folder / "encoding.safetensors")),
        evidence=MappingProxyType(read_tensors(folder / "evidence.safetensors")),
        provenance=_read(folder / _PROVENANCE, Provenance),
        network=folder / NETWORK if (folder / NETWORK).is_dir() else None,
        encoder=folder / ENCODER if (folder / ENCODER).is_dir() else None,
    )


def write_records(folder: Path, provenance: Provenance, curve: Sequence[CurvePoint]) -> None:
    """Write provenance and learning curve into the folder of a bundle that is not sealed yet."""
    write_provenance(folder, provenance)
    _write(folder / _CURVE, list(curve))


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write the provenance alone."""
    _write(folder / _PROVENANCE, provenance)


def _write(path: Path, content: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def _read(path: Path, kind: type[T]) -> T:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected JSON: {error}; calibrate again") from None
    return checked(raw, kind, source=str(path), error=BundleError)
