"""Multi-frame files made for the purpose: frames in any order, several echoes and components, aborted series."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from rtdecode.acquire.dicom import DicomReader
from rtdecode.acquire.readers import Readers
from rtdecode.acquire.stored import StoredVolume
from rtdecode.errors import VolumeError

SHAPE = (6, 5, 3)
Frame = tuple[int, int, str, int]  # volume, echo, component, slice, from 0


def values(volume: int, echo: int, component: str) -> np.ndarray:
    return np.random.default_rng([volume, echo, ord(component[0])]).integers(1, 4000, SHAPE).astype(np.uint16)


def item(**content: object) -> Items:
    made = Dataset()
    for keyword, value in content.items():
        setattr(made, keyword, value)
    return Items([made])


def functional(frame: Frame, origin_z: float, step_mm: float) -> Dataset:
    volume, echo, component, place = frame
    made = Dataset()
    made.MREchoSequence = item(EffectiveEchoTime=12.0 + 20.0 * echo)
    made.MRImageFrameTypeSequence = item(
        FrameType=["ORIGINAL", "PRIMARY", "FMRI", "NONE"], ComplexImageComponent=component
    )
    moment = f"202401020300{volume:02d}.{200_000 * place:06d}"
    made.FrameContentSequence = item(FrameAcquisitionDateTime=moment, TemporalPositionIndex=volume + 1)
    made.PlanePositionSequence = item(ImagePositionPatient=[-10, -20, origin_z + step_mm * place])
    return made


def write(
    path: Path,
    frames: Sequence[Frame],
    *,
    syntax: str = ExplicitVRLittleEndian,
    instance: int = 1,
    origin_z: float = -30.0,
    step_mm: float = 4.0,
) -> Path:
    out = Dataset()
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = syntax
    out.SOPClassUID = out.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    out.SOPInstanceUID = out.file_meta.MediaStorageSOPInstanceUID = f"2.25.9{instance}"
    out.SeriesInstanceUID, out.SeriesNumber, out.InstanceNumber = "2.25.77", 4, instance
    out.Manufacturer, out.SoftwareVersions, out.MRAcquisitionType = "Maker", "1", "2D"
    out.AcquisitionDateTime = "20240102030000.000000"
    out.Rows, out.Columns, out.NumberOfFrames = SHAPE[1], SHAPE[0], len(frames)
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = 16, 12, 11, 0
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[2.0, 3.0], SliceThickness=4.0)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.MRTimingAndRelatedParametersSequence = item(RepetitionTime=1500.0)
    out.SharedFunctionalGroupsSequence = Items([shared])
    out.PerFrameFunctionalGroupsSequence = Items([functional(frame, origin_z, step_mm) for frame in frames])
    pixels = np.stack([values(*frame[:3])[:, :, frame[3]].T for frame in frames])
    out.PixelData = pixels.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    out["PixelData"].VR = "OW"
    out.save_as(path, enforce_file_format=True)
    return path


def all_frames(volumes: int, echoes: int = 1, components: Sequence[str] = ("MAGNITUDE",)) -> list[Frame]:
    return list(itertools.product(range(volumes), range(echoes), components, range(SHAPE[2])))


def told(volume: StoredVolume) -> tuple[int, int | None, str]:
    return volume.identity.instance, volume.identity.echo, volume.identity.component


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_frames_find_their_volume_in_any_order(tmp_path: Path, syntax: str) -> None:
    frames = all_frames(4, 2, ("MAGNITUDE", "PHASE"))
    random.Random(3).shuffle(frames)
    found = DicomReader().read(write(tmp_path / "all.dcm", frames, syntax=syntax)).volumes
    names = {"M": "MAGNITUDE", "P": "PHASE"}
    assert [told(v) for v in found] == list(itertools.product(range(1, 5), (1, 2), "MP"))
    for volume in found:
        instance, echo, component = told(volume)
        assert echo is not None
        np.testing.assert_array_equal(volume.data, values(instance - 1, echo - 1, names[component]))
        np.testing.assert_allclose(volume.affine, [[-3, 0, 0, 10], [0, -2, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])
        np.testing.assert_allclose(volume.slice_times_s, [0, 0.2, 0.4], atol=1e-6)
        assert volume.t_r_s == 1.5
    assert len({volume.identity.uid for volume in found}) == len(found)


def test_an_aborted_series_gives_its_whole_volumes(tmp_path: Path) -> None:
    found = DicomReader().read(write(tmp_path / "cut.dcm", all_frames(3)[:-1])).volumes
    assert [told(v)[0] for v in found] == [1, 2]
    assert "lack slices" in found[0].problems[0]


def test_later_files_of_a_series_are_read_as_the_first(tmp_path: Path) -> None:
    reader = DicomReader()
    for volume in range(3):
        frames = [(volume, 0, "MAGNITUDE", place) for place in range(SHAPE[2])]
        path = write(tmp_path / f"{volume}.dcm", frames, instance=volume + 1)
        (known,), (fresh,) = reader.read(path).volumes, DicomReader().read(path).volumes
        assert told(known) == told(fresh) == (volume + 1, 1, "M")
        for name in ("data", "affine", "slice_times_s"):
            np.testing.assert_array_equal(getattr(known, name), getattr(fresh, name))
        np.testing.assert_array_equal(known.data, values(volume, 0, "MAGNITUDE"))


@pytest.mark.parametrize("numbered", [True, False])
def test_echoes_in_files_of_their_own_are_told_apart(tmp_path: Path, numbered: bool) -> None:
    readers = Readers(tmp_path)
    read = []
    for instance, (volume, echo) in enumerate(itertools.product(range(3), range(2)), start=1):
        frames = [(volume, echo, "MAGNITUDE", place) for place in range(SHAPE[2])]
        path = write(tmp_path / f"{instance}.dcm", frames, instance=instance)
        dataset = pydicom.dcmread(path)
        dataset.AcquisitionNumber = volume + 1
        for item in dataset.PerFrameFunctionalGroupsSequence:
            if numbered:
                item.MREchoSequence[0].EchoNumbers = echo + 1
        dataset.save_as(path)
        (found,) = readers.read(path).volumes
        np.testing.assert_array_equal(found.data, values(volume, echo, "MAGNITUDE"))
        read.append(((volume + 1, echo + 1, "M"), found))
    assert [told(readers.placed(found)) for _, found in read] == [expected for expected, _ in read]


def test_echoes_without_numbers_are_ordered_once_all_are_there(tmp_path: Path) -> None:
    """Until an earlier echo has come, the first to come counts as echo 1."""
    reader, found = DicomReader(), []
    for instance, (volume, echo) in enumerate([(0, 1), (0, 0), (1, 1), (1, 0), (2, 2)], start=1):
        frames = [(volume, echo, "MAGNITUDE", place) for place in range(SHAPE[2])]
        (one,) = reader.read(write(tmp_path / f"{instance}.dcm", frames, instance=instance)).volumes
        found.append(one.identity.echo)
    assert found == [1, 1, 2, 1, 3]


@pytest.mark.parametrize("change", [{"origin_z": -31.0}, {"step_mm": 5.0}])
def test_a_file_that_lies_elsewhere_is_not_taken_for_the_first(tmp_path: Path, change: dict[str, float]) -> None:
    reader, frames = DicomReader(), all_frames(1)
    reader.read(write(tmp_path / "1.dcm", frames))
    moved = write(tmp_path / "2.dcm", frames, instance=2, **change)
    (found,) = reader.read(moved).volumes
    np.testing.assert_array_equal(found.affine, DicomReader().read(moved).volumes[0].affine)
    assert found.affine is not None
    assert (found.affine[2, 3], found.affine[2, 2]) == (change.get("origin_z", -30), change.get("step_mm", 4))


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    frames = [(0, 0, "MAGNITUDE", place) for place in (0, 2)]
    assert DicomReader().read(write(tmp_path / "two.dcm", frames)).volumes[0].data.shape == (6, 5, 2)
    dataset = pydicom.dcmread(write(tmp_path / "three.dcm", all_frames(1)))
    position = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    position.ImagePositionPatient = [-10, -20, -29]
    dataset.save_as(tmp_path / "uneven.dcm")
    with pytest.raises(VolumeError, match="evenly spaced"):
        DicomReader().read(tmp_path / "uneven.dcm")


@pytest.mark.parametrize("signed", [0, 1])
def test_bits_above_the_stored_ones_mean_nothing(tmp_path: Path, signed: int) -> None:
    dataset = pydicom.dcmread(write(tmp_path / "plain.dcm", all_frames(1)))
    dataset.PixelRepresentation = signed
    noisy = np.random.default_rng(1).integers(0, 1 << 16, dataset.pixel_array.shape).astype("<u2")
    dataset.PixelData = noisy.tobytes()
    dataset.save_as(tmp_path / "noisy.dcm")
    (found,) = DicomReader().read(tmp_path / "noisy.dcm").volumes
    expected = pydicom.dcmread(tmp_path / "noisy.dcm").pixel_array
    np.testing.assert_array_equal(found.data, expected.transpose(2, 1, 0))
