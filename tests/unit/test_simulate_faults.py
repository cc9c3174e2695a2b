from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdecode.simulate.faults import FAULTS, ScannerFault, Step, make_plan, parse_fault

VOLUMES = [[f"v{volume}_s{file}" for file in range(2)] for volume in range(6)]
LOSING = {"truncated", "unfilled", "dropped"}


def plan(*faults: ScannerFault, seed: int = 0) -> list[Step]:
    return make_plan(VOLUMES, faults, seed=seed)


def first_at(steps: list[Step], source: str) -> float:
    return min(step.at_s for step in steps if step.source == source)


def written(steps: list[Step]) -> dict[str, float]:
    """How much of each file has been written without a gap in the end, by its last name."""
    out: dict[str, float] = {}
    for step in steps:
        if step.action == "rename":
            out[step.new_name] = out.pop(step.name)
        elif step.action == "allocate":
            out[step.name] = 0.0
        elif step.action == "put":
            out[step.name] = 1.0
        else:
            assert step.start == out[step.name]
            out[step.name] = step.stop
    return out


def test_without_faults_each_file_is_put_once_at_its_time() -> None:
    steps = plan()
    assert [step.source for step in steps] == [name for volume in VOLUMES for name in volume]
    assert {step.action for step in steps} == {"put"}
    assert [step.at_s for step in steps] == [1.0 * (at + 1) for at in range(12)]


@given(
    faults=st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.none() | st.integers(0, 5)), max_size=6),
    seed=st.integers(0, 99),
)
def test_a_plan_loses_only_what_it_is_told_to(faults: list[tuple[str, int | None]], seed: int) -> None:
    given_volumes = [volume for _, volume in faults if volume is not None]
    asked = [ScannerFault(kind=kind, volume=volume) for kind, volume in faults]
    if len(set(given_volumes)) < len(given_volumes):
        with pytest.raises(ValueError, match="no other fault"):
            plan(*asked, seed=seed)
        return
    steps = plan(*asked, seed=seed)
    assert steps == plan(*asked, seed=seed)
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
    assert all(0.0 <= step.start <= step.stop <= 1.0 for step in steps)
    kinds = [kind for kind, _ in faults]
    whole = written(steps)
    broken = [name for name, fraction in whole.items() if fraction < 1.0]
    assert len(broken) == kinds.count("truncated") + kinds.count("unfilled") + kinds.count("restarted")
    series = {step.series for step in steps}
    assert series == set(range(1 + kinds.count("restarted") + kinds.count("foreign")))
    last = kinds.count("restarted")
    there = {step.source for step in steps if step.series == last}
    assert len(there) == 12 - kinds.count("dropped")


def test_the_seed_picks_volumes_and_pieces() -> None:
    plans = {repr(plan(ScannerFault(kind="in-place"), seed=seed)) for seed in range(20)}
    assert len(plans) == 20


def test_reordered_volumes_change_places() -> None:
    for at, other in ((0, 1), (5, 4)):
        steps = plan(ScannerFault(kind="reordered", volume=at))
        assert first_at(steps, f"v{at}_s0") == first_at(plan(), f"v{other}_s0")
        assert first_at(steps, f"v{other}_s0") == first_at(plan(), f"v{at}_s0")


def test_late_and_dropped_hit_one_file_of_the_volume() -> None:
    late = plan(ScannerFault(kind="late", volume=2))
    moved = [step for step in late if step not in plan()]
    assert [step.source[:2] for step in moved] == ["v2"]
    assert moved[0].at_s == first_at(plan(), moved[0].source) + 10.0
    dropped = {step.source for step in plan()} - {step.source for step in plan(ScannerFault(kind="dropped", volume=2))}
    assert [source[:2] for source in dropped] == ["v2"]


def test_a_restart_breaks_off_and_begins_again() -> None:
    steps = plan(ScannerFault(kind="restarted", volume=2))
    assert {step.source[:2] for step in steps if step.series == 0} == {"v0", "v1", "v2"}
    assert {step.source[:2] for step in steps if step.series == 1} == {f"v{volume}" for volume in range(6)}
    assert max(step.at_s for step in steps if step.series == 0) < min(step.at_s for step in steps if step.series == 1)


def test_a_jump_of_the_clock_lasts() -> None:
    steps = plan(ScannerFault(kind="clock-jump", volume=2))
    jumped = first_at(steps, "v2_s0")
    assert {step.clock_s for step in steps if step.at_s < jumped} == {0.0}
    assert {step.clock_s for step in steps if step.at_s > jumped} == {-3600.0}


def test_faults_are_parsed() -> None:
    assert parse_fault("late") == ScannerFault(kind="late", volume=None)
    assert parse_fault("clock-jump@12") == ScannerFault(kind="clock-jump", volume=12)
    for text in ("lost", "late@", "late@-1", "late@x"):
        with pytest.raises(ValueError, match="expected"):
            parse_fault(text)


def test_a_volume_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="late@6: expected a volume below 6"):
        plan(ScannerFault(kind="late", volume=6))
    with pytest.raises(ValueError, match="at most one fault"):
        plan(*[ScannerFault(kind="late")] * 7)
    with pytest.raises(ValueError, match="positive"):
        make_plan(VOLUMES, [], period_s=0.0)
