"""Files that are not whole yet, and files that never will be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtdecode.acquire import watcher as watcher_module
from rtdecode.records import Volume
from rtdecode.simulate import mosaic_writer as mosaic
from tests.conftest import FakeClock
from tests.watching import SHAPE, nifti, put, series, told, watch


def test_a_growing_file_is_waited_for(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    raw = put(tmp_path, 1).read_bytes()
    path = tmp_path / "001_000003_000001.dcm"
    for end in range(0, len(raw), len(raw) // 7):
        path.write_bytes(raw[:end])
        assert source.poll() == []
        clock.sleep(3.0)
    path.write_bytes(raw)
    assert told(source.poll()) == [(1, 0, "volume")]


def test_a_truncated_file_is_given_up_and_its_index_is_missing(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:-100])
    put(tmp_path, 3)
    assert told(source.poll()) == [(1, 0, "volume")]
    clock.sleep(5.0)
    first, second = source.poll()
    assert told([first, second]) == [(1, 1, "truncated"), (1, 2, "volume")]
    assert first.path == path


def test_a_file_filled_up_with_zeros_is_not_taken_until_written(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    raw = path.read_bytes()
    path.write_bytes(raw[:-300] + bytes(300))
    assert told(source.poll()) == [(1, 0, "volume")]
    path.write_bytes(raw)
    assert told(source.poll()) == [(1, 1, "volume")]
    path = put(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-300] + bytes(300))
    assert source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 2, "truncated")]


def test_a_blank_edge_is_accepted_after_waiting_once(tmp_path: Path, clock: FakeClock) -> None:
    def edge(instance: int) -> None:
        data = np.random.default_rng(instance).integers(1, 4000, SHAPE).astype(np.uint16)
        data[:, -2:, :] = 0
        mosaic.write(tmp_path, series(), instance, data)

    source = watch(tmp_path, clock)
    edge(1)
    assert source.poll() == []
    clock.sleep(5.0)
    (first,) = source.poll()
    assert isinstance(first.item, Volume)
    assert "zero" in first.item.problems[0]
    edge(2)
    (second,) = source.poll()
    assert isinstance(second.item, Volume)
    assert second.item.problems == ()


def test_a_blank_edge_that_varies_costs_one_look(tmp_path: Path, clock: FakeClock) -> None:
    shape = (40, 30, 4)

    def edge(instance: int, zeros: int) -> None:
        data = np.random.default_rng(instance).integers(1, 4000, shape).astype(np.uint16)
        data[:, -2:, :] = 0
        data[shape[0] - zeros :, -3, -1] = 0
        mosaic.write(tmp_path, series(shape), instance, data)

    source = watch(tmp_path, clock)
    edge(1, 2)
    assert source.poll() == []
    clock.sleep(5.0)
    assert told(source.poll()) == [(1, 0, "volume")]
    edge(2, 7)
    assert source.poll() == []
    assert told(source.poll()) == [(1, 1, "volume")]


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("name", ["001_000003_000001.dcm", "a_1.nii", "a_1.nii.gz"])
def test_a_header_that_is_being_written_into_zeros_is_waited_for(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    raw = (put(tmp_path, 1) if name.endswith(".dcm") else nifti(tmp_path, name, 1)).read_bytes()
    source = watch(folder, FakeClock(), first_instance=1)
    for end in range(1, len(raw) - 2 * SHAPE[0] - 10, 3):
        (folder / name).write_bytes(raw[:end] + bytes(len(raw) - end))
        assert source.poll() == []
    (folder / name).write_bytes(raw)
    assert told(source.poll()) == [(1, 0, "volume")]


def test_incomplete_files_do_not_hold_others_back(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "MOST_FILES", 3)
    source = watch(tmp_path, clock)
    for number in range(5):
        (tmp_path / f"000_broken_{number}.dcm").write_bytes(bytes(500))
    put(tmp_path, 1)
    assert source.poll() == []
    assert told(source.poll()) == [(1, 0, "volume")]
    before = clock.now
    source.wait(1.0)
    assert clock.now == before + 1.0


def test_files_dealt_with_are_not_opened_again(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = watch(tmp_path, clock)
    put(tmp_path, 1)
    (tmp_path / "readme").write_text("not an image " * 20)
    assert len(source.poll()) == 2

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr(Path, "open", forbidden)
    assert source.poll() == []


def short_tail(folder: Path, instance: int, zeros: int) -> tuple[Path, bytes]:
    path = put(folder, instance)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) - 2 * zeros] + bytes(2 * zeros))
    return path, raw


@pytest.mark.parametrize("zeros", [1, 3, SHAPE[0]])
def test_a_few_zeros_at_the_end_may_still_be_filled(tmp_path: Path, clock: FakeClock, zeros: int) -> None:
    source = watch(tmp_path, clock)
    path, raw = short_tail(tmp_path, 1, zeros)
    assert source.poll() == []
    path.write_bytes(raw)
    (arrival,) = source.poll()
    assert isinstance(arrival.item, Volume)
    assert arrival.item.problems == ()
    assert arrival.item.data[-1, -1, -1] != 0


def test_a_few_zeros_that_stay_are_air_and_cost_one_look(tmp_path: Path, clock: FakeClock) -> None:
    source = watch(tmp_path, clock)
    short_tail(tmp_path, 1, 3)
    assert source.poll() == []
    (arrival,) = source.poll()
    assert isinstance(arrival.item, Volume)
    assert "last 3 values are zero" in arrival.item.problems[0]
    for instance, zeros in ((2, 2), (3, 3)):
        short_tail(tmp_path, instance, zeros)
        (arrival,) = source.poll()
        assert isinstance(arrival.item, Volume)
        assert arrival.item.problems == ()
    short_tail(tmp_path, 4, 5)
    assert source.poll() == []
    assert told(source.poll()) == [(1, 3, "volume")]
