"""Whatever a scanner does to its export: each good volume comes once, at its own index, each bad one is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtdecode.acquire.source import Arrival
from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Skipped, Volume
from rtdecode.settings import ScannerSettings
from rtdecode.simulate.faults import FAULTS, ScannerFault, make_plan
from rtdecode.simulate.misbehave import FaultyScanner, RecordedExport
from tests.conftest import FakeClock
from tests.exports import FORMATS, N_VOLUMES, Format, values

PERIOD_S, GAP_S, LATE_S, TICK_S = 2.0, 5.0, 10.0, 0.5
SEED = 1
Told = tuple[int, int | None, bool]


class TickingClock(FakeClock):
    """Sleeps tick by tick, so that others get their turn; its wall clock can jump."""

    jump_s = 0.0

    def wall(self) -> float:
        return super().wall() + self.jump_s

    def sleep(self, seconds: float) -> None:
        while seconds > 0:
            super().sleep(min(seconds, TICK_S))
            seconds -= TICK_S


@dataclass(frozen=True)
class Case:
    """A recorded export, and the picture of each of its volumes."""

    recording: RecordedExport
    volumes: list[list[str]]
    pictures: list[NDArray[Any]]

    def place(self, where: str) -> int:
        return {"first": 0, "middle": len(self.volumes) // 2, "last": len(self.volumes) - 1}[where]


def replay(
    recording: RecordedExport,
    volumes: Sequence[Sequence[str]],
    folder: Path,
    *faults: ScannerFault,
    silent: bool = False,
) -> list[Arrival]:
    """Replay under a watcher that looks at each tick and, unless `silent`, after each step; return all it gave."""
    folder.mkdir()
    clock, out = TickingClock(), []
    settings = ScannerSettings(export_dir=folder, gap_timeout_s=GAP_S, watch="polling")
    plan = make_plan(volumes, faults, seed=SEED, period_s=PERIOD_S, late_s=LATE_S)
    with FolderWatcher(settings, "s1", clock) as source:
        clock.on_sleep = lambda: out.extend(source.poll())

        def on_step(step: Any) -> None:
            clock.jump_s = step.clock_s
            out.extend([] if silent else source.poll())

        FaultyScanner(recording, plan, folder, clock).play(on_step)
        clock.sleep(3 * GAP_S)
        assert source.poll() == []
    return out


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format], Case]:
    """Cases by format, each made once, its pictures from a replay without faults."""
    made: dict[str, Case] = {}

    def get(form: Format) -> Case:
        if form.name not in made:
            folder = tmp_path_factory.mktemp(form.name)
            if form.write is None:
                recording = RecordedExport(request.getfixturevalue("shared") / "data" / form.series / "dicom")
            else:
                (folder / "recorded").mkdir()
                form.write(folder / "recorded")
                recording = RecordedExport(folder / "recorded")
            volumes = recording.volumes(form.files_per_volume)[:N_VOLUMES]
            items = [arrival.item for arrival in replay(recording, volumes, folder / "export")]
            pictures = [item.data for item in items if isinstance(item, Volume)]
            assert told(items) == whole(1, len(volumes))
            made[form.name] = Case(recording, volumes, pictures)
        return made[form.name]

    return get


def told(items: Sequence[Volume | Skipped]) -> list[Told]:
    """Run, index and whether the volume is good, of all that have an index."""
    return [
        (item.stamp.run, item.stamp.volume, True) if isinstance(item, Volume) else (item.run, item.volume, False)
        for item in items
        if isinstance(item, Volume) or item.volume is not None
    ]


def whole(run: int, count: int, bad: int | None = None) -> list[Told]:
    return [(run, index, index != bad) for index in range(count)]


def expected(kind: str, at: int, count: int, *, sliced: bool) -> list[Told]:
    """Say what must be told of a recording of `count` volumes with a fault at one of them.

    The end of a run does not show that its last volume is missing; a volume with some of its slices does.
    """
    last = at == count - 1
    match kind:
        case "truncated" | "unfilled":
            return whole(1, count, at)
        case "dropped" if last and not sliced:
            return whole(1, count - 1)
        case "dropped":
            return whole(1, count, at)
        case "late" if not last or sliced:
            return whole(1, count, at)
        case "foreign":
            return whole(2, count) + whole(1, 3) if at == 0 else whole(1, count) + whole(2, 3)
        case "restarted" if at > 0:
            return whole(1, at + 1, at) + whole(2, count)
        case _:
            return whole(1, count)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_no_fault_loses_or_shifts_a_volume(
    form: Format, kind: str, where: str, case: Callable[[Format], Case], tmp_path: Path
) -> None:
    this = case(form)
    at = this.place(where)
    export = tmp_path / "export"
    arrivals = replay(this.recording, this.volumes, export, ScannerFault(kind=kind, volume=at), silent=kind == "silent")
    indexed = told([arrival.item for arrival in arrivals])
    assert Counter(indexed) == Counter(expected(kind, at, len(this.volumes), sliced=form.files_per_volume > 1))
    for run in (1, 2):
        indices = [index for of, index, _ in indexed if of == run]
        assert indices == sorted(indices)
    for arrival in arrivals:
        if isinstance(arrival.item, Volume):
            assert arrival.path is not None
            relabelled = "series-" in str(arrival.path.relative_to(export))
            picture = this.pictures[arrival.item.stamp.volume]
            np.testing.assert_array_equal(arrival.item.data.flat[relabelled:], picture.flat[relabelled:])
        else:
            assert arrival.item.reason
    if form.files_per_volume == 1:
        files = Counter(arrival.path for arrival in arrivals if arrival.path is not None)
        assert files == Counter(path for path in export.rglob("*") if path.is_file())


class Derived:
    """A recording whose other series are labelled as derived from it."""

    def __init__(self, recording: RecordedExport) -> None:
        self._recording = recording

    def read(self, name: str, series: int = 0) -> bytes:
        content = self._recording.read(name, series)
        return content.replace(b"ORIGINAL\\PRIMARY", b"DERIVED \\PRIMARY") if series else content


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("form", [form for form in FORMATS if "nifti" not in form.name], ids=lambda form: form.name)
def test_a_foreign_series_that_is_no_bold_makes_no_run(
    form: Format, where: str, case: Callable[[Format], Case], tmp_path: Path
) -> None:
    this = case(form)
    recording: Any = Derived(this.recording)
    fault = ScannerFault(kind="foreign", volume=this.place(where))
    items = [arrival.item for arrival in replay(recording, this.volumes, tmp_path / "export", fault)]
    assert Counter(told(items)) == Counter(whole(1, len(this.volumes)))
    (other,) = [item for item in items if isinstance(item, Skipped)]
    assert "derived" in other.reason


@pytest.mark.parametrize("form", [form for form in FORMATS if form.write], ids=lambda form: form.name)
def test_without_faults_pictures_are_those_written(form: Format, case: Callable[[Format], Case]) -> None:
    for index, picture in enumerate(case(form).pictures):
        np.testing.assert_array_equal(picture, values(index))
