"""Recorded exports of several formats, small, for tests that replay them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from rtdecode.simulate import mosaic_writer as mosaic

SHAPE = (24, 20, 9)
N_VOLUMES = 6


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format: a function that writes a series of `N_VOLUMES`, or a real series of the shared data."""

    name: str
    write: Callable[[Path], None] | None = None
    series: str = ""
    files_per_volume: int = 1


def values(index: int) -> NDArray[np.uint16]:
    return np.random.default_rng(index).integers(1, 4000, SHAPE).astype(np.uint16)


def write_mosaics(folder: Path) -> None:
    series = mosaic.MosaicSeries(
        study="recorded",
        number=3,
        affine=np.diag([3.0, 3.0, 4.0, 1.0]),
        t_r_s=2.0,
        slice_times_s=np.arange(SHAPE[2]) * 0.5,
        start=datetime.datetime(2001, 2, 3, 4, 5, 6),
    )
    for index in range(N_VOLUMES):
        mosaic.write(folder, series, index + 1, values(index))


def write_nifti(folder: Path, pattern: str) -> None:
    for index in range(N_VOLUMES):
        nib.save(nib.Nifti1Image(values(index), np.eye(4)), folder / pattern.format(index + 1))


FORMATS = (
    Format(name="mosaic", write=write_mosaics),
    Format(name="mosaic-real", series="siemens-ve11-prisma-pyneal13"),
    Format(name="enhanced", series="siemens-xa30-enh-fmri"),
    Format(name="slices", series="ge-mr750-nih", files_per_volume=15),
    Format(name="nifti", write=partial(write_nifti, pattern="run-01_bold_{:05d}.nii")),
    Format(name="nifti-gz", write=partial(write_nifti, pattern="vol_{}.nii.gz")),
)
