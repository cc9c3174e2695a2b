"""Series that are no BOLD series: left out, named once, and never a run; the settings can choose."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdecode.acquire.source import Arrival
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Skipped
from rtdecode.settings import SeriesRule
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock
from tests.scans import unpack
from tests.watching import SHAPE, nifti, put, series, told, watch

Label = Callable[[Any], None]
GOOD = [(1, 0, "volume"), (1, 1, "volume")]


def labelled(folder: Path, instance: int, number: int, label: Label, shape: tuple[int, int, int] = SHAPE) -> Path:
    data = np.random.default_rng([number, instance]).integers(1, 4000, shape).astype(np.uint16)
    made = mosaic.dataset(series(shape, number), instance, data)
    label(made)
    path = folder / f"001_{number:06d}_{instance:06d}.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def image_type(*words: str) -> Label:
    return lambda made: setattr(made, "ImageType", [*words, "MOSAIC"])


def field(name: str, value: object) -> Label:
    return lambda made: setattr(made, name, value)


def reasons(arrivals: list[Arrival]) -> list[str]:
    return [arrival.item.reason for arrival in arrivals if isinstance(arrival.item, Skipped)]


def all_polls(source: FolderWatcher, clock: FakeClock) -> list[Arrival]:
    out = source.poll() + source.poll()
    clock.sleep(5.0)
    return out + source.poll()


OTHERS: dict[str, tuple[Label, str]] = {
    "moco": (image_type("ORIGINAL", "PRIMARY", "M", "ND", "MOCO"), "motion-corrected"),
    "moco by name": (field("SeriesDescription", "MoCoSeries"), "motion-corrected"),
    "derived": (image_type("DERIVED", "PRIMARY", "M"), "derived"),
    "secondary": (image_type("ORIGINAL", "SECONDARY", "M"), "secondary"),
    "phase": (image_type("ORIGINAL", "PRIMARY", "P", "ND"), "component P"),
    "phase by component": (field("ComplexImageComponent", "PHASE"), "component P"),
    "localizer": (image_type("ORIGINAL", "PRIMARY", "LOCALIZER"), "a localizer"),
    "localizer by name": (field("SeriesDescription", "AAHead_Scout_64ch"), "a localizer"),
    "reference": (field("SeriesDescription", "bold_run-01_SBRef"), "single-band reference"),
    "diffusion": (image_type("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"), "diffusion"),
    "perfusion": (field("AcquisitionContrast", "PERFUSION"), "perfusion"),
    "anatomy": (field("ScanningSequence", ["GR", "IR"]), "not echo-planar"),
    "single": (field("NumberOfTemporalPositions", 1), "single volume"),
    "second echo": (field("EchoNumbers", 2), "echo 2"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("first", [True, False])
def test_another_series_is_named_once_and_makes_no_run(
    tmp_path: Path, clock: FakeClock, kind: str, first: bool
) -> None:
    label, why = OTHERS[kind]
    source = watch(tmp_path, clock)
    number = 2 if first else 5
    out: list[Arrival] = []
    for instance in (1, 2):
        labelled(tmp_path, instance, number, label)
        put(tmp_path, instance)
        out += source.poll()
    out += all_polls(source, clock)
    assert [item for item in told(out) if item[2] == "volume"] == GOOD
    (reason,) = reasons(out)
    assert why in reason
    assert f"series {number}" in reason
    put(tmp_path, 1, 7)
    assert told(source.poll()) == [(2, 0, "volume")]


def test_labels_of_a_bold_series_leave_nothing_out(tmp_path: Path, clock: FakeClock) -> None:
    def label(made: Any) -> None:
        made.ImageType = ["DERIVED", "PRIMARY", "M", "ND", "MFSPLIT", "MOSAIC"]
        made.SeriesDescription, made.ScanningSequence, made.NumberOfTemporalPositions = "func_moco_off", ["EP"], 200

    source = watch(tmp_path, clock)
    labelled(tmp_path, 1, 3, label)
    assert told(source.poll()) == [(1, 0, "volume")]


def test_real_series_that_are_no_bold_make_no_run(shared: Path, tmp_path: Path, clock: FakeClock) -> None:
    export = tmp_path / "export"
    export.mkdir()
    for name in ("philips-enh-fieldmap", "canon-galan-enh4000", "siemens-ve11-skyra-nih"):
        (tmp_path / name).mkdir()
        for path, _ in unpack(shared, name, tmp_path / name):
            shutil.copy(path, export / f"{name}-{path.name}")
    out = all_polls(watch(export, clock), clock)
    assert [item for item in told(out) if item[2] == "volume"] == GOOD
    assert sorted(reason.split(" is ", 1)[1].split(";")[0] for reason in reasons(out)) == [
        "diffusion-weighted",
        "of a sequence that is not echo-planar",
    ]


def test_magnitude_is_used_of_a_series_with_phase(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    for instance in (1, 2):
        put(tmp_path, instance)
        path = labelled(tmp_path, instance, 3, image_type("ORIGINAL", "PRIMARY", "P"), (8, 6, 4))
        raw = path.read_bytes()
        path.rename(tmp_path / f"phase_{instance}.dcm")
        put(tmp_path, instance)
        assert raw != path.read_bytes()
    out = source.poll()
    assert [item for item in told(out) if item[2] == "volume"] == GOOD
    assert len(reasons(out)) == 1
    assert "component P of series 3" in reasons(out)[0]


def test_a_series_of_another_shape_than_the_first_run_is_left_out(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    out = source.poll()
    for instance in (1, 2):
        put(tmp_path, instance, 4, shape=(8, 6, 5))
    put(tmp_path, 1, 5)
    out += source.poll()
    assert [item for item in told(out) if item[2] == "volume"] == [(1, 0, "volume"), (2, 0, "volume")]
    (reason,) = reasons(out)
    assert "series 4 is of another shape: (8, 6, 5), the first run has (8, 6, 4)" in reason


@pytest.mark.parametrize(
    ("rules", "runs"),
    [
        ((), [3, 6]),
        ((SeriesRule(number=4),), [4]),
        ((SeriesRule(description="moco*"), SeriesRule(number=6)), [4, 6]),
        ((SeriesRule(description="*rest*", use=False),), [3]),
        ((SeriesRule(image_type="moco"),), [4]),
        ((SeriesRule(number=4, image_type="ND", use=False), SeriesRule(description="*")), [3, 6]),
        ((SeriesRule(number=3, description="rest*"),), []),
    ],
)
def test_settings_choose(tmp_path: Path, clock: FakeClock, rules: tuple[SeriesRule, ...], runs: list[int]) -> None:
    def moco(made: Any) -> None:
        made.ImageType, made.SeriesDescription = ["ORIGINAL", "PRIMARY", "M", "ND", "MOCO", "MOSAIC"], "MoCoSeries"

    paths = {
        put(tmp_path, 1, 3).name: 3,
        labelled(tmp_path, 1, 4, moco).name: 4,
        labelled(tmp_path, 1, 6, field("ProtocolName", "Rest_AP")).name: 6,
    }
    out = watch(tmp_path, clock, series=rules).poll()
    volumes = [arrival.item for arrival in out if not isinstance(arrival.item, Skipped)]
    assert [paths[volume.path] for volume in volumes] == runs
    assert [volume.stamp.run for volume in volumes] == list(range(1, len(runs) + 1))
    assert len(reasons(out)) == 3 - len(runs)


def test_a_rule_takes_in_another_shape(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock, series=(SeriesRule(description="*"),))
    put(tmp_path, 1)
    put(tmp_path, 1, 4, shape=(8, 6, 5))
    assert told(source.poll()) == [(1, 0, "volume"), (2, 0, "volume")]


def test_the_echo_is_chosen(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock, echo=2)
    paths = [labelled(tmp_path, instance, 3, field("EchoNumbers", 2 - instance % 2)) for instance in (1, 2)]
    out = source.poll() + source.poll()
    clock.sleep(5.0)
    out += source.poll()
    assert [arrival.path for arrival in out if not isinstance(arrival.item, Skipped)] == paths[1:]


def test_a_reason_tells_no_free_text(tmp_path: Path, clock: FakeClock) -> None:
    labelled(tmp_path, 1, 4, field("SeriesDescription", "localizer Jane Doe"))
    (reason,) = reasons(watch(tmp_path, clock).poll())
    assert "localizer" in reason
    assert "Jane" not in reason


def test_nifti_series_are_chosen_by_name(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock, first_instance=1)
    nifti(tmp_path, "run-01_sbref_1.nii", 1)
    nifti(tmp_path, "sub_rest_1.nii", 2)
    out = source.poll()
    assert [item for item in told(out) if item[2] == "volume"] == [(1, 0, "volume")]
    assert "single-band" in reasons(out)[0]
