"""A score for neurofeedback through the whole line: one message a volume, come what may."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rtdecode import client as wire
from rtdecode.publish import requests
from rtdecode.session.journal import read
from rtdecode.settings import Settings, parse
from rtdecode.simulate.participant import Participant, ResponseParameters, make_participant
from rtdecode.simulate.scanner import Scanner
from rtdecode.simulate.visit import VisitPlan
from tests.conftest import FakeClock
from tests.system.line_harness import PROTOCOL, Recorder, Rig
from tests.system.test_resume import content, published

PLAN = VisitPlan(
    seed=5, calibration_runs=1, decoding_runs=1, trials_per_run=8, volumes_per_run=30, t_r_s=PROTOCOL.t_r_s
)
BASELINE = 6


@pytest.fixture(scope="module")
def participant() -> Participant:
    return make_participant(PLAN.seed, PROTOCOL, ResponseParameters(n_responsive=120))


def settings_for(participant: Participant, out: Path) -> Settings:
    (out / "export").mkdir(parents=True)
    participant.write_region(out / "region.nii.gz")
    raw = {
        "session": {"participant": "sim", "output": ".", "seed": 3},
        "scanner": {"export_dir": "export", "gap_timeout_s": 4.0, "watch": "polling"},
        "estimate": {"regions": {"visual": "region.nii.gz"}},
        "calibration": {"runs": 2},
        "feedback": {"score": "region", "regions": ["visual"], "baseline_volumes": BASELINE, "deadline_s": 60.0},
    }
    return parse(raw, root=out)


def scan(participant: Participant, out: Path, lost: frozenset[tuple[int, int]] = frozenset()) -> tuple[Recorder, Path]:
    clock = FakeClock()
    settings = settings_for(participant, out)
    rig = Rig(settings, clock)
    scanner = Scanner(PLAN, participant, settings.scanner.export_dir, clock, speed=1.0)

    def lose(run: int, volume: int) -> None:
        if (run, volume) in lost:
            max(settings.scanner.export_dir.iterdir(), key=lambda path: path.name).unlink()

    scanner.play(lambda message: rig.request(requests.Event, **message), lambda run: clock.sleep(10.0), lose)
    for _ in range(8):
        clock.sleep(1.0)
    return rig.recorder, rig.finish()


@pytest.fixture(scope="module")
def whole(participant: Participant, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    return scan(participant, tmp_path_factory.mktemp("whole"))


def test_every_volume_has_its_score(whole: tuple[Recorder, Path]) -> None:
    found, volumes = whole[0].of(wire.Feedback), whole[0].of(wire.Volume)
    places = [(run, volume) for run in (1, 2) for volume in range(PLAN.volumes_per_run)]
    assert [(one.run, one.volume) for one in found] == places == [(one.run, one.volume) for one in volumes]
    assert [one.seq for one in found] == list(range(len(found)))
    assert all(one.stages["total"] >= 0 for one in found)
    for run in (1, 2):
        signal = {one.volume: one.regions["visual"] for one in volumes if one.run == run}
        told = [one for one in found if one.run == run]
        base = [one for one in told if one.state == "baseline"]
        shown = [one for one in told if one.state == "shown"]
        assert len(base) == BASELINE
        assert len(shown) >= PLAN.volumes_per_run - BASELINE - 8  # some are held: the head moved
        expected = [signal[one.volume] - np.mean([signal[b.volume] for b in base]) for one in shown]
        np.testing.assert_allclose([one.value for one in shown], expected, atol=1e-6)


def test_after_kills_every_volume_has_one_score_with_the_same_bytes(
    whole: tuple[Recorder, Path],
    participant: Participant,
    tmp_path: Path,
    kill_at: Callable[[list[int], random.Random], None],
) -> None:
    reference = whole[1]
    outputs = list(read(reference / "journal" / "outputs.journal"))
    inputs = sum(1 for _ in read(reference / "journal" / "inputs.journal"))
    own = [place for place, record in enumerate(outputs) if record["topic"] == "feedback"]
    rng = random.Random(4)
    kill_at(sorted(inputs + place for place in rng.sample(own, 2)), rng)
    _, folder = scan(participant, tmp_path)
    assert content(published(folder, "feedback")) == content(published(reference, "feedback"))


def test_a_volume_that_did_not_come_holds_what_was_shown(participant: Participant, tmp_path: Path) -> None:
    lost = frozenset({(1, 15)})
    found = {(one.run, one.volume): one for one in scan(participant, tmp_path, lost)[0].of(wire.Feedback)}
    assert len(found) == 2 * PLAN.volumes_per_run
    assert found[1, 15].state == "held"
    assert found[1, 15].value == found[1, 14].value
    assert found[1, 15].invalid
