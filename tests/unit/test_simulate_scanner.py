from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdecode.acquire.watcher import FolderWatcher
from rtdecode.records import Volume
from rtdecode.settings import ScannerSettings
from rtdecode.simulate.acquisition import NoiseParameters
from rtdecode.simulate.playback import Player, Speed
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.conftest import FakeClock
from tests.unit.simulate_small import PLAN, PROTOCOL, participant


class Listener:
    """Notes every message with the time and the number of files there were."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.folder, self.clock = folder, clock
        self.heard: list[tuple[dict[str, Any], int, float]] = []

    def __call__(self, message: dict[str, Any]) -> None:
        self.heard.append((message, len(list(self.folder.iterdir())), self.clock.now))


def scanner(folder: Path, clock: FakeClock, speed: Speed = "max", plan: VisitPlan = PLAN) -> Scanner:
    return Scanner(plan, participant(), folder, clock, speed)


def test_a_visit_is_announced_and_written_in_step(tmp_path: Path, clock: FakeClock) -> None:
    listener, began = Listener(tmp_path, clock), clock.now
    volumes: list[tuple[int, int]] = []
    scanner(tmp_path, clock, 1.0).play(listener, on_volume=lambda run, volume: volumes.append((run, volume)))
    assert clock.now - began == pytest.approx(PLAN.runs * PLAN.volumes_per_run * PLAN.t_r_s)
    assert volumes == [(run, index) for run in (1, 2) for index in range(PLAN.volumes_per_run)]
    by_run = defaultdict(list)
    for message, files, now in listener.heard:
        by_run[message["run"]].append((message, files - (message["run"] - 1) * PLAN.volumes_per_run, now))
    for run, heard in by_run.items():
        start, *trials, end = heard
        assert start[:2] == ({"kind": "run_start", "run": run, "expected_volumes": 26, "t_r_s": 1.5}, 0)
        assert end[:2] == ({"kind": "run_end", "run": run, "volumes": 26}, 26)
        assert [message["trial"] for message, _, _ in trials] == [trial.trial for trial in PLAN.of_run(run)]
        for message, files, now in trials:
            assert files <= message["onset_s"] // PLAN.t_r_s
            assert now - start[2] == pytest.approx(message["onset_s"])
            assert set(message) == {"kind", "run", "trial", "onset_s", "duration_s", "stimulus", "condition"}


@pytest.mark.parametrize(("speed", "seconds"), [(10.0, 7.8), ("max", 0.0)])
def test_speed_shortens_the_visit(tmp_path: Path, clock: FakeClock, speed: Speed, seconds: float) -> None:
    began, listener = clock.now, Listener(tmp_path, clock)
    scanner(tmp_path, clock, speed).play(listener)
    assert clock.now - began == pytest.approx(seconds)
    for message, files, _ in listener.heard:
        if message["kind"] == "trial":
            assert files - (message["run"] - 1) * PLAN.volumes_per_run <= message["onset_s"] // PLAN.t_r_s


def test_speed_may_change_from_run_to_run(tmp_path: Path, clock: FakeClock) -> None:
    began, made = clock.now, scanner(tmp_path, clock)
    made.play(lambda message: None, hold=lambda run: made.set_speed(1.0) if run == 2 else None)
    assert clock.now - began == pytest.approx(PLAN.volumes_per_run * PLAN.t_r_s)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, clock: FakeClock) -> None:
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scanner(tmp_path / name, clock).play(lambda message: None)
        files = sorted((tmp_path / name).iterdir())
        digests.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert digests[0] == digests[1]
    assert digests[0][0][0] == "001_000003_000001.dcm"
    assert len({digest for _, digest in digests[0]}) == PLAN.runs * PLAN.volumes_per_run


def test_another_visit_shows_the_same_brain_with_noise_of_its_own(tmp_path: Path, clock: FakeClock) -> None:
    """A decoder of the first visit must not meet the noise that it has learned from."""
    still = NoiseParameters(motion_walk_mm=0, spikes=0, between_runs_mm=0)
    first, again, second = (Scanner(PLAN, participant(), tmp_path, clock, noise=still, visit=n) for n in (1, 1, 2))
    one, same, two = (np.stack([*made.volumes(1)]).astype(float) for made in (first, again, second))
    np.testing.assert_array_equal(one, same)
    inside = one.mean(0) > 2 * one.mean()
    assert np.corrcoef(one.mean(0)[inside], two.mean(0)[inside])[0, 1] > 0.99
    off = [(volumes - volumes.mean(0))[:, inside] for volumes in (one, two)]
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(*off, strict=True)]
    assert np.abs(np.mean(alike)) < 0.1
    affine, mask = participant().protocol.affine, np.ones(participant().protocol.shape, bool)
    np.testing.assert_array_equal(first.true_betas(affine, mask), second.true_betas(affine, mask))
    assert first._series(1).study != second._series(1).study


def test_the_watcher_reads_what_was_rendered(tmp_path: Path, clock: FakeClock) -> None:
    made = scanner(tmp_path, clock)
    made.play(lambda message: None)
    with FolderWatcher(ScannerSettings(export_dir=tmp_path, watch="polling"), "s1", clock) as source:
        volumes = [arrival.item for arrival in source.poll()]
    assert len(volumes) == PLAN.runs * PLAN.volumes_per_run
    for run in (1, 2):
        for index, data in enumerate(made.volumes(run)):
            volume = volumes[(run - 1) * PLAN.volumes_per_run + index]
            assert isinstance(volume, Volume)
            assert (volume.stamp.run, volume.stamp.volume) == (run, index)
            np.testing.assert_array_equal(volume.data, data)
            np.testing.assert_allclose(volume.affine, PROTOCOL.affine, atol=1e-6)


def test_dates_follow_the_clock_when_asked(tmp_path: Path, clock: FakeClock) -> None:
    Scanner(PLAN, participant(), tmp_path, clock, 1.0, live_dates=True).play(lambda message: None)
    began = clock.wall() - 2 * PLAN.volumes_per_run * PLAN.t_r_s
    with FolderWatcher(ScannerSettings(export_dir=tmp_path, watch="polling"), "s1", clock) as source:
        for arrival in source.poll():
            assert isinstance(arrival.item, Volume)
            stamp = arrival.item.stamp
            since = ((stamp.run - 1) * PLAN.volumes_per_run + stamp.volume) * PLAN.t_r_s
            assert stamp.acquired_s == pytest.approx(began + since, abs=1e-3)


def test_a_run_is_held_back_before_anything_of_it_is_told(tmp_path: Path, clock: FakeClock) -> None:
    listener, held = Listener(tmp_path, clock), []

    def hold(run: int) -> None:
        held.append((run, len(list(tmp_path.iterdir())), len(listener.heard)))
        clock.sleep(100.0)

    scanner(tmp_path, clock).play(listener, hold)
    assert held == [(1, 0, 0), (2, PLAN.volumes_per_run, PLAN.trials_per_run + 2)]


def test_stop_ends_after_the_present_volume(tmp_path: Path, clock: FakeClock) -> None:
    listener, made = Listener(tmp_path, clock), scanner(tmp_path, clock)
    made.play(listener, on_volume=lambda run, volume: made.stop() if volume == 4 else None)
    assert len(list(tmp_path.iterdir())) == 5
    assert "run_end" not in [message["kind"] for message, _, _ in listener.heard]


def test_true_betas_are_those_of_the_pictures_shown(tmp_path: Path, clock: FakeClock) -> None:
    one, mask = participant(), np.zeros(PROTOCOL.shape, bool)
    mask[tuple(one.voxels[:7].T)] = True
    mask[0, 0, 0] = True
    shuffled = replace(PLAN, shuffle_labels=True)
    betas = [scanner(tmp_path, clock, plan=plan).true_betas(PROTOCOL.affine, mask) for plan in (PLAN, shuffled)]
    np.testing.assert_array_equal(betas[0], betas[1])
    assert betas[0].shape == (16, 8)
    assert betas[0].dtype == np.float32
    np.testing.assert_array_equal(betas[0][:, 0], 0)
    np.testing.assert_allclose(betas[0][:, 1:], one.responses([trial.scene for trial in PLAN.trials])[:, :7], rtol=1e-4)


def test_what_cannot_be_played_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="repetition time"):
        scanner(tmp_path, clock, plan=VisitPlan(t_r_s=2.0))
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive speed"):
            Player(clock, speed)
