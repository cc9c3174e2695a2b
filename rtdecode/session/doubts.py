"""What is doubtful about what comes from the scanner, as faults for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire.timing import doubts
from rtdecode.client import Fault
from rtdecode.estimate.inputs import T_R_TOLERANCE_S
from rtdecode.estimate.labels import FEWEST_VOXELS, Parcels
from rtdecode.estimate.mask import brain_mask
from rtdecode.records import Volume

_INSIDE = 0.75
"""Share of the mask's voxels that lie in the brain, at the least."""
_ALIKE = 0.8
"""Correlation of a head with itself at another visit, at the least; two heads of the simulator come to .72."""


def timing_faults(volume: Volume, told: set[str]) -> Iterator[Fault]:
    """Yield a fault for each time in a volume's file that cannot be true and could not be repaired.

    Parameters
    ----------
    volume : Volume
    told : set of str
        Kinds of which the run has told; grows.
    """
    run = volume.stamp.run
    for kind, reason in doubts(volume.problems):
        if kind in told:
            continue
        told.add(kind)
        slices = kind == "slice_times_s"
        yield Fault(
            run=run,
            part="timing",
            kind=kind,
            reason=f"run {run}: {volume.path}: {kind}: {reason}",
            degraded="the middle of a volume stands for all of its slices" if slices else "onsets may be wrong",
            remedy="compare the protocol of the scanner" if slices else "set scanner.t_r_s as in the protocol",
        )


def repetition_time_faults(run: int, counted_s: float | None, told_s: float | None) -> Iterator[Fault]:
    """Yield a fault where the experiment counts on another repetition time than the volumes have, seconds."""
    if counted_s is None or told_s is None or abs(counted_s - told_s) <= T_R_TOLERANCE_S:
        return
    reason = f"run {run}: repetition time: expected {counted_s:g} s as the experiment announced, got {told_s:g} s"
    yield Fault(run=run, part="experiment", reason=reason, degraded="onsets counted in volumes are wrong")


def short_run_faults(run: int, volumes: int, expected: int | None, following: int) -> Iterator[Fault]:
    """Yield a fault where a run lacks volumes of those expected when the next one begins.

    Parameters
    ----------
    run : int
    volumes : int
        That came, or were given up.
    expected : int or None
        As the experiment or the settings say.
    following : int
        The run that begins.
    """
    if expected is not None and volumes < expected:
        yield Fault(
            run=run,
            part="experiment",
            kind="short run",
            reason=f"run {run} had {volumes} of {expected} volumes when the scanner began run {following}",
            degraded=f"trials announced for the rest of run {run} have no result",
            remedy=f"if the scan was started again, its trials belong to run {following}: announce them there, and "
            "count on from that",
        )


def late_change(run: int, trial: str) -> Fault:
    """Tell that a change which was taken came to nothing: time had closed the run in between."""
    reason = f"trial {trial!r} cannot be changed: its beta became final before the change was worked on"
    return Fault(run=run, part="experiment", kind="change", reason=reason, degraded="it stays as it was")


def parcel_faults(parcels: Mapping[str, Parcels]) -> Iterator[Fault]:
    """Yield a fault for each label image of which parcels are left out."""
    for name, found in parcels.items():
        if found.dropped:
            yield Fault(
                part="estimate",
                kind="parcels",
                reason=f"estimate.parcels.{name}: expected {FEWEST_VOXELS} voxels or more of each parcel inside the "
                f"mask, got fewer of {', '.join(found.dropped)}",
                degraded="these parcels have no values",
                remedy="none where they lie outside of what is scanned; else compare label image and mask",
            )


def mask_faults(mask: NDArray[np.bool_], today: NDArray[np.float32]) -> Iterator[Fault]:
    """Yield a fault where much of the mask lies outside the brain.

    Parameters
    ----------
    mask : array of shape (i, j, k), bool
    today : array of shape (i, j, k), float32
        First volume of the session, where the mask lies.
    """
    try:
        inside = float(brain_mask(today)[mask].mean())
    except ValueError:
        inside = 0.0
    if inside < _INSIDE:
        yield Fault(
            part="estimate",
            kind="mask",
            reason=f"expected {_INSIDE:.0%} or more of the mask's {mask.sum():,} voxels in the brain that is scanned, "
            f"got {inside:.0%}",
            degraded="voxels outside hold noise: little can be decoded",
            remedy="look at the mask over the first volume; place the slices as at calibration, or give another mask",
        )


def head_faults(correlation: float) -> Iterator[Fault]:
    """Yield a fault where the first volume is little like the reference of the participant's calibration."""
    if correlation < _ALIKE:
        yield Fault(
            part="estimate",
            kind="head",
            reason=f"expected the head that was calibrated, a correlation of {_ALIKE:g} or more with its reference, "
            f"got {correlation:.2f}",
            degraded="if this is somebody else, nothing is decoded, whatever is shown",
            remedy="compare the name of the participant with decode.bundle, and look at the alignment plot",
        )
