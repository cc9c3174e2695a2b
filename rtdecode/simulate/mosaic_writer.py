"""Writes volumes as Siemens mosaic DICOM files, as a scanner's real-time export does."""

from __future__ import annotations

import datetime
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import DSfloat

from rtdecode.acquire import csa
from rtdecode.simulate.seeds import uid

LARGEST_VALUE = 4095

_CSA_CHECK = 77
_CSA_EMPTY = 205
_CSA_ITEMS = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MosaicSeries:
    """What the files of a series share.

    Attributes
    ----------
    study : str
        Identity of the visit; UIDs derive from it.
    number : int
        Series number.
    affine : array of shape (4, 4)
        Voxel indices (column, row, slice) to RAS+ mm; columns orthogonal.
    t_r_s : float
    slice_times_s : array of shape (n_slices,)
    start : datetime
        Acquisition start of the first volume.
    """

    study: str
    number: int
    affine: NDArray[np.float64]
    t_r_s: float
    slice_times_s: NDArray[np.float64]
    start: datetime.datetime


def file_name(series: int, instance: int) -> str:
    """Name of a file in a Siemens real-time export."""
    return f"001_{series:06d}_{instance:06d}.dcm"


def write(folder: Path, series: MosaicSeries, instance: int, data: NDArray[np.uint16]) -> Path:
    """Write one volume under a temporary name in the same folder, then rename it.

    Parameters
    ----------
    folder : Path
    series : MosaicSeries
    instance : int
        From 1.
    data : array of shape (columns, rows, slices), uint16
        At most `LARGEST_VALUE`.

    Returns
    -------
    Path
        The file.
    """
    path = folder / file_name(series.number, instance)
    unfinished = folder / f".{path.name}.tmp"
    dataset(series, instance, data).save_as(unfinished, enforce_file_format=True)
    os.replace(unfinished, path)
    return path


def dataset(series: MosaicSeries, instance: int, data: NDArray[np.uint16]) -> Dataset:
    """Return the DICOM dataset of one volume; see `write`."""
    n_slices = data.shape[2]
    tiles = int(np.ceil(np.sqrt(n_slices)))
    mosaic = to_mosaic(data)
    lps = np.diag([-1.0, -1.0, 1.0]) @ series.affine[:3]
    steps = lps[:, :3]
    lengths = np.linalg.norm(steps, axis=0)
    column, row, normal = (steps / lengths).T
    position = lps[:, 3] - (tiles - 1) / 2 * (steps[:, 0] * data.shape[0] + steps[:, 1] * data.shape[1])
    moment = series.start + datetime.timedelta(seconds=(instance - 1) * series.t_r_s)
    date, clock = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")

    out = Dataset()
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.file_meta.MediaStorageSOPClassUID = MRImageStorage
    out.SOPClassUID = MRImageStorage
    out.SOPInstanceUID = out.file_meta.MediaStorageSOPInstanceUID = uid(series.study, series.number, instance)
    out.StudyInstanceUID = uid(series.study)
    out.SeriesInstanceUID = uid(series.study, series.number)
    out.FrameOfReferenceUID = uid(series.study, "frame")
    out.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM", "MOSAIC"]
    out.StudyDate, out.SeriesDate, out.AcquisitionDate, out.ContentDate = (date,) * 4
    out.StudyTime, out.SeriesTime = (series.start.strftime("%H%M%S.%f"),) * 2
    out.AcquisitionTime, out.ContentTime = (clock,) * 2
    out.Modality = "MR"
    out.Manufacturer = "SIEMENS"
    out.ManufacturerModelName = "rtdecode simulated scanner"
    out.PatientName = "SIMULATED"
    out.PatientID = "SIMULATED"
    out.PatientPosition = "HFS"
    out.ProtocolName = out.SeriesDescription = "simulated_bold"
    out.SequenceName = "*epfid2d1_64"
    out.ScanningSequence = "EP"
    out.MRAcquisitionType = "2D"
    out.RepetitionTime = _decimal(series.t_r_s * 1000)
    out.EchoTime = _decimal(30.0)
    out.FlipAngle = _decimal(70.0)
    out.MagneticFieldStrength = _decimal(3.0)
    out.SliceThickness = out.SpacingBetweenSlices = _decimal(lengths[2])
    out.SeriesNumber = series.number
    out.AcquisitionNumber = out.InstanceNumber = instance
    out.ImagePositionPatient = [_decimal(x) for x in position]
    out.ImageOrientationPatient = [_decimal(x) for x in (*column, *row)]
    out.PixelSpacing = [_decimal(lengths[1]), _decimal(lengths[0])]
    out.InPlanePhaseEncodingDirection = "COL"
    out.SamplesPerPixel = 1
    out.PhotometricInterpretation = "MONOCHROME2"
    out.Rows, out.Columns = mosaic.shape
    out.BitsAllocated, out.BitsStored, out.HighBit = 16, 12, 11
    out.PixelRepresentation = 0
    private = out.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    private.add_new(0x10, "OB", _csa_header(series, data.shape, normal))
    out.PixelData = mosaic.astype("<u2").tobytes()
    out["PixelData"].VR = "OW"
    return out


def to_mosaic(data: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Lay the slices of (columns, rows, slices) out as square tiles, row by row; unused tiles are zero."""
    n_x, n_y, n_slices = data.shape
    tiles = int(np.ceil(np.sqrt(n_slices)))
    padded = np.zeros((n_x, n_y, tiles * tiles), dtype=np.uint16)
    padded[:, :, :n_slices] = data
    grid = padded.reshape(n_x, n_y, tiles, tiles).transpose(2, 1, 3, 0)
    return np.ascontiguousarray(grid).reshape(tiles * n_y, tiles * n_x)


def _decimal(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)


def _csa_header(series: MosaicSeries, shape: tuple[int, ...], normal: NDArray[np.float64]) -> bytes:
    elements = (
        ("AcquisitionMatrixText", 1, b"SH", 22, [f"{shape[1]}*{shape[0]}"]),
        ("BandwidthPerPixelPhaseEncode", 1, b"FD", 4, ["30.637"]),
        ("MosaicRefAcqTimes", 0, b"FD", 4, [f"{1000 * t:.8f}" for t in series.slice_times_s]),
        ("NumberOfImagesInMosaic", 1, b"US", 10, [str(shape[2])]),
        ("PhaseEncodingDirectionPositive", 1, b"IS", 6, ["1"]),
        ("SliceNormalVector", 3, b"FD", 4, [f"{x:.8f}" for x in normal]),
    )
    parts = [csa.MAGIC, struct.pack("<II", len(elements), _CSA_CHECK)]
    for name, multiplicity, kind, code, values in elements:
        count = -(-len(values) // _CSA_ITEMS) * _CSA_ITEMS
        parts.append(struct.pack("<64si4siii", name.encode(), multiplicity, kind, code, count, _CSA_CHECK))
        for value in values:
            text = value.encode() + b"\0"
            parts.append(struct.pack("<4i", len(text), len(text), _CSA_CHECK, len(text)))
            parts.append(text + b"\0" * (-len(text) % 4))
        parts.append(struct.pack("<4i", 0, 0, _CSA_EMPTY, 0) * (count - len(values)))
    return b"".join(parts)
