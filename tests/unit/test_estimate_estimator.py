"""The estimator: a pure fold whose betas equal a batch fit at every volume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtdecode.errors import ProtocolError, SettingsError, VolumeError
from rtdecode.estimate import Estimator
from rtdecode.estimate.voxels import same_everywhere
from rtdecode.records import BetaUpdate, Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings

SHAPE = (12, 10, 1)
T_R_S = 2.0
OFF = EstimateSettings(registration="off", revise_at_s=(6.0, 10.0), final_at_s=14.0, censor_fd_mm=1.0)


def volume(index: int, run: int = 1, **changes: object) -> Volume:
    """A masked slice of 40 voxels and noise, the same for the same run and index."""
    rng = np.random.default_rng([run, index])
    data = np.zeros(SHAPE, np.float32)
    data[2:10, 2:7, 0] = 600 + 20 * np.arange(40).reshape(8, 5) + 10 * rng.standard_normal((8, 5))
    fields: dict[str, object] = {
        "stamp": Stamp(session="s", run=run, volume=index, received_s=float(index), received_mono_s=0.0),
        "data": data,
        "affine": np.diag([3.0, 3.0, 3.0, 1.0]),
        "t_r_s": T_R_S,
        "slice_times_s": None,
        "series_uid": "1.2",
        "instance": index + 1,
        "path": f"{run}/{index}.dcm",
    }
    return Volume(**(fields | changes))  # type: ignore[arg-type]


def event(onset_s: float, run: int = 1, duration_s: float = 2.0) -> TrialEvent:
    return TrialEvent(run=run, trial=f"{run}/{onset_s}", onset_s=onset_s, duration_s=duration_s)


def play(
    estimator: Estimator,
    length: int = 30,
    run: int = 1,
    onsets_s: tuple[float, ...] = (4.0, 20.0, 36.0),
    told: tuple[tuple[float, bool], ...] = ((T_R_S, False),),
) -> list[BetaUpdate]:
    """Take a run; `told` are its volumes' repetition times and whether they were measured, the last for all others."""
    estimator.start_run(run, told[0][0])
    for onset_s in onsets_s:
        estimator.add_event(event(onset_s, run))
    updates = []
    for index in range(length):
        t_r_s, measured = told[min(index, len(told) - 1)]
        updates += estimator.step(volume(index, run, t_r_s=t_r_s, t_r_measured=measured))[1]
    return updates + estimator.finish_run()


def facts(updates: list[BetaUpdate]) -> list[tuple[object, ...]]:
    return [(u.stamp, u.event.trial, u.revision, u.final, u.delay_s, u.beta.tobytes(), u.invalid) for u in updates]


def test_betas_come_when_they_are_due() -> None:
    updates = play(Estimator(OFF, "s"), onsets_s=(4.0, 20.5))
    first = [u for u in updates if u.event.onset_s == 4.0]
    assert [(u.revision, u.final, u.delay_s, u.stamp.volume) for u in first] == [
        (0, False, 6.0, 4),
        (1, False, 10.0, 6),
        (2, True, 14.0, 8),
    ]
    second = [u for u in updates if u.event.onset_s == 20.5]
    assert [u.delay_s for u in second] == [7.5, 11.5, 15.5]
    assert all(u.stamp.trial == u.event.trial and u.beta.dtype == np.float32 for u in updates)
    assert not updates[0].beta.flags.writeable


def test_same_inputs_same_betas() -> None:
    one, other = Estimator(OFF, "s"), Estimator(OFF, "s")
    for run in (1, 2, 3):
        assert facts(play(one, run=run)) == facts(play(other, run=run))


def test_the_future_does_not_change_the_past() -> None:
    short, long = play(Estimator(OFF, "s"), length=20), play(Estimator(OFF, "s"), length=30)
    early = [u for u in short if u.delay_s + u.event.onset_s < 40.0]
    assert facts(early) == facts(long[: len(early)])


def test_announcing_a_trial_ahead_changes_nothing_before_its_onset() -> None:
    trials = [event(4.0), event(14.0), event(24.0, duration_s=12.0), event(40.0, duration_s=12.0)]

    def announced(ahead_s: float) -> list[tuple[object, ...]]:
        estimator, waiting, updates = Estimator(OFF, "s"), list(trials), []
        estimator.start_run(1, T_R_S)
        for index in range(30):
            while waiting and waiting[0].onset_s < (index + 1) * T_R_S + ahead_s:
                estimator.add_event(waiting.pop(0))
            updates += estimator.step(volume(index))[1]
        return facts(updates + estimator.finish_run())

    assert announced(60.0) == announced(0.0)


def test_an_event_may_come_after_its_volumes() -> None:
    estimator = Estimator(OFF, "s")
    estimator.start_run(1, None)
    for index in range(20):
        assert estimator.step(volume(index))[1] == []
    estimator.add_event(event(4.0))
    _, updates = estimator.step(volume(20))
    assert [(u.revision, u.final, u.delay_s) for u in updates] == [(0, True, 38.0)]
    assert updates[0].invalid is None
    assert estimator.finish_run() == []


def test_events_of_a_later_run_wait_for_it() -> None:
    estimator = Estimator(OFF, "s")
    estimator.add_event(event(4.0, run=2))
    assert play(estimator, onsets_s=()) == []
    updates = play(estimator, run=2, onsets_s=())
    assert {u.event.run for u in updates} == {2}


def test_open_trials_become_final_at_the_end_of_the_run() -> None:
    updates = play(Estimator(OFF, "s"), length=25, onsets_s=(4.0, 40.0, 49.5, 80.0))
    last = {u.event.onset_s: u for u in updates if u.final}
    assert last[40.0].delay_s == 10.0
    assert last[40.0].invalid is None
    assert np.isfinite(last[40.0].beta).all()
    for onset_s in (49.5, 80.0):
        assert last[onset_s].invalid == "less than 5% of the response was observed"
        assert np.isnan(last[onset_s].beta).all()
        assert last[onset_s].beta.shape == (40,)


def test_a_run_without_volumes_ends_in_invalid_trials() -> None:
    estimator = Estimator(OFF, "s")
    estimator.start_run(1, None)
    estimator.add_event(event(4.0))
    estimator.skip(1, 0)
    (update,) = estimator.finish_run()
    assert (update.final, update.invalid) == (True, "no usable volume in the run")


def test_a_skipped_volume_is_a_missing_row_and_delays_what_was_due() -> None:
    estimator = Estimator(OFF, "s")
    estimator.start_run(1, None)
    estimator.add_event(event(4.0))
    updates = []
    for index in range(12):
        if index in (4, 5):
            estimator.skip(1, index)
        else:
            updates += estimator.step(volume(index))[1]
    assert [u.delay_s for u in updates] == [10.0, 14.0]


@pytest.mark.parametrize(
    ("moved", "left_out"),
    [
        (slice(10, 11), (10,)),  # a jerk: the next volume is where the head was before
        (slice(10, 12), (10, 12)),  # it stayed there for a while
        (slice(10, 30), (10,)),  # and for good
    ],
)
def test_volumes_with_much_motion_are_left_out(tmp_path: Path, moved: slice, left_out: tuple[int, ...]) -> None:
    motion = np.zeros((30, 6))
    motion[moved, 0] = 5.0
    np.savetxt(tmp_path / "run-1.txt", motion)
    settings = replace(OFF, motion_file=tmp_path, confounds="none")
    censored = play(Estimator(settings, "s"))
    missing = Estimator(replace(OFF, confounds="none"), "s")
    missing.start_run(1, T_R_S)
    for onset_s in (4.0, 20.0, 36.0):
        missing.add_event(event(onset_s))
    expected = []
    for index in range(30):
        if index in left_out:
            missing.skip(1, index)
        else:
            expected += missing.step(volume(index))[1]
    expected += missing.finish_run()
    final = {u.event.trial: u.beta for u in expected if u.final}
    for update in censored:
        if update.final:
            np.testing.assert_array_equal(update.beta, final[update.event.trial])


def test_motion_comes_from_the_file(tmp_path: Path) -> None:
    motion = np.random.default_rng(0).standard_normal((30, 6)) / 100
    np.savetxt(tmp_path / "run-1.txt", np.hstack([motion, motion]))
    estimator = Estimator(replace(OFF, motion_file=tmp_path), "s")
    estimator.start_run(1, None)
    registered, _ = estimator.step(volume(0))
    np.testing.assert_allclose(registered.motion, motion[0])
    registered, _ = estimator.step(volume(1))
    change = np.abs(motion[1] - motion[0])
    assert registered.fd_mm == pytest.approx(change[:3].sum() + 50 * change[3:].sum())
    with pytest.raises(VolumeError, match="motion_file: expected a row for volume 30"):
        estimator.step(volume(30))


@pytest.mark.parametrize("content", [None, "1 2 3\n", "a b c d e f\n", "1 2 3 4 5 nan\n"])
def test_a_bad_motion_file_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run-1.txt").write_text(content)
    with pytest.raises(SettingsError, match=r"estimate.motion_file.*run-1.txt"):
        Estimator(replace(OFF, motion_file=tmp_path), "s").start_run(1, None)


def test_reference_mask_and_voxel_order() -> None:
    estimator = Estimator(OFF, "s")
    with pytest.raises(RuntimeError, match="first volume"):
        _ = estimator.space
    estimator.start_run(1, None)
    first = volume(0)
    registered, _ = estimator.step(replace(first, data=first.data.astype(np.int16), slope=2.0, intercept=1.0))
    data = estimator.space.data
    np.testing.assert_array_equal(data, 2 * np.trunc(first.data) + 1)
    np.testing.assert_array_equal(estimator.space.affine, first.affine)
    assert estimator.space.mask.sum() == registered.masked.size
    np.testing.assert_array_equal(registered.masked, data[estimator.space.mask])
    assert math.isclose(registered.fit, 1.0)


def test_mask_from_a_file(tmp_path: Path) -> None:
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[3:6, 3:5] = 1
    affine = volume(0).affine
    settings = replace(OFF, mask=tmp_path / "mask.nii")
    nibabel.save(nibabel.Nifti1Image(wanted, affine), settings.mask)
    estimator = Estimator(settings, "s")
    assert play(estimator)[0].beta.shape == (6,)
    np.testing.assert_array_equal(estimator.space.mask, wanted > 0)
    assert estimator.space.brain.sum() == 40
    for bad, bad_affine, message in (
        (wanted[1:], affine, "expected the shape"),
        (wanted, 2 * affine, "expected the affine"),
        (0 * wanted, affine, "expected some voxels"),
    ):
        nibabel.save(nibabel.Nifti1Image(bad, bad_affine), settings.mask)
        fresh = Estimator(settings, "s")
        fresh.start_run(1, None)
        with pytest.raises(SettingsError, match=message):
            fresh.step(volume(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((3, 3, 3), np.float32)}, "shape: expected"),
        ({"data": np.full(SHAPE, np.nan, np.float32)}, "data: expected finite"),
        ({"data": np.zeros(SHAPE, np.float32)}, "data: expected a correlation with the reference"),
        ({"t_r_s": 3.0}, "t_r_s: expected 2.0, got 3.0"),
    ],
)
def test_a_bad_volume_changes_nothing(changes: dict[str, object], message: str) -> None:
    estimator, untouched = Estimator(OFF, "s"), Estimator(OFF, "s")
    updates = []
    for each in (estimator, untouched):
        each.start_run(1, None)
        each.add_event(event(4.0))
    for index in range(12):
        if index in (3, 7):
            with pytest.raises(VolumeError, match=message):
                estimator.step(volume(index, **changes))
            for each in (estimator, untouched):
                each.skip(1, index)
            continue
        updates.append([each.step(volume(index))[1] for each in (estimator, untouched)])
    for ours, expected in updates:
        assert facts(ours) == facts(expected)


def test_a_first_volume_without_a_head_is_not_taken_as_reference() -> None:
    estimator = Estimator(OFF, "s")
    estimator.start_run(1, T_R_S)
    with pytest.raises(VolumeError, match="brain mask"):
        estimator.step(volume(0, data=np.zeros(SHAPE, np.float32)))
    estimator.skip(1, 0)
    estimator.step(volume(1))
    assert estimator.space.mask.sum() == 40


def test_no_repetition_time_anywhere_is_an_error() -> None:
    estimator = Estimator(OFF, "s")
    estimator.start_run(1, None)
    with pytest.raises(VolumeError, match="t_r_s"):
        estimator.step(volume(0, t_r_s=None))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (event(4.0), "new to the session"),
        (event(-1.0), "onset_s"),
        (event(math.nan), "onset_s"),
        (event(5.0, duration_s=-1.0), "duration_s"),
        (event(6.0, run=0), "one that is over"),
    ],
)
def test_bad_events_are_refused(bad: TrialEvent, message: str) -> None:
    estimator = Estimator(OFF, "s")
    play(estimator, run=0, length=3, onsets_s=())
    estimator.start_run(1, None)
    estimator.add_event(event(4.0))
    with pytest.raises(ProtocolError, match=message):
        estimator.add_event(bad)


def test_runs_and_volumes_come_in_order() -> None:
    estimator = Estimator(OFF, "s")
    with pytest.raises(ProtocolError, match="start_run"):
        estimator.step(volume(0))
    with pytest.raises(ProtocolError, match="open run"):
        estimator.finish_run()
    estimator.start_run(1, None)
    estimator.step(volume(3))
    with pytest.raises(ProtocolError, match="after 3"):
        estimator.skip(1, 3)
    with pytest.raises(ProtocolError, match="finished first"):
        estimator.start_run(2, None)
    estimator.finish_run()
    with pytest.raises(ProtocolError, match="is over"):
        estimator.start_run(1, None)


def test_models_of_the_voxels_are_learned_between_runs() -> None:
    """Bins change later runs only, and the same inputs give the same betas."""
    settings = replace(OFF, voxel_hrf=True, voxel_shrinkage=True, autocorrelation="voxel", slice_timing="slices")
    one, other, plain = Estimator(settings, "s"), Estimator(settings, "s"), Estimator(OFF, "s")
    assert facts(play(one)) == facts(play(other)) == facts(play(plain))
    second = facts(play(one, run=2))
    assert second == facts(play(other, run=2))
    assert second != facts(play(plain, run=2))


def test_separate_trials_and_standard_errors() -> None:
    settings = replace(OFF, shrinkage="none", single_trial="lss", confounds="none")
    updates = play(Estimator(settings, "s", standard_errors=True), onsets_s=(4.0, 20.0, 36.0, 58.0))
    assert [u.invalid is None for u in updates if u.final] == [True, True, True, False]
    for update in updates:
        assert update.standard_error is not None
        assert update.standard_error.shape == update.beta.shape
        assert np.isfinite(update.standard_error).all() == (update.invalid is None)
    together = play(Estimator(replace(settings, single_trial="lsa"), "s"), onsets_s=(4.0, 20.0, 36.0, 58.0))
    assert together[-2].beta.tobytes() != updates[-2].beta.tobytes()
    assert together[-1].standard_error is None


def test_voxels_may_be_known_beforehand() -> None:
    slow = replace(same_everywhere(40), hrf=np.full(40, 15))
    plain, same, other = (play(Estimator(OFF, "s", voxels=model)) for model in (None, same_everywhere(40), slow))
    for a, b, c in zip(plain, same, other, strict=True):
        np.testing.assert_allclose(a.beta, b.beta, rtol=1e-6)
        assert not np.allclose(a.beta, c.beta)


def test_each_slice_has_its_moment() -> None:
    """Volumes of two slices: a slice acquired later sees the response later."""
    settings = replace(OFF, slice_timing="slices", shrinkage="none", confounds="none")
    rng = np.random.default_rng(3)
    level = rng.uniform(500, 1500, (12, 10, 2, 1))
    data = (level * (1 + 0.01 * rng.standard_normal((12, 10, 2, 40)))).astype(np.float32)
    data[:2] = data[9:] = 0
    times = np.array([0.2, 1.6])

    def betas(settings: EstimateSettings, slices: list[int], moments: np.ndarray) -> np.ndarray:
        estimator = Estimator(settings, "s")
        estimator.start_run(1, T_R_S)
        estimator.add_event(event(10.0))
        updates = []
        for index in range(40):
            one = volume(index, data=data[:, :, slices, index], slice_times_s=moments)
            updates += estimator.step(one)[1]
        beta = np.zeros((12, 10, len(slices)))
        beta[estimator.space.mask] = (updates + estimator.finish_run())[-1].beta
        return beta

    both = betas(settings, [0, 1], times)
    for k in range(2):  # alone, a slice's moment is the middle of the volume
        alone = betas(replace(settings, slice_timing="middle"), [k], times[[k]])
        np.testing.assert_allclose(both[:, :, k], alone[:, :, 0], rtol=1e-5, atol=1e-9)


def test_a_repetition_time_that_was_measured_holds_for_the_whole_run() -> None:
    """The header of the first volumes was wrong: betas are those of a run that told the right time from the start."""
    right = play(Estimator(OFF, "s"))
    told = ((1.79, False), (1.79, False), (T_R_S, True), (1.79, False), (T_R_S, True))  # resumed in between
    wrong = play(Estimator(OFF, "s"), told=told)
    assert [(u.event.trial, u.final, u.delay_s) for u in wrong] == [(u.event.trial, u.final, u.delay_s) for u in right]
    for one, other in zip(wrong, right, strict=True):
        np.testing.assert_array_equal(one.beta, other.beta)


@pytest.mark.parametrize("told", [0.0, -1.0, 1500.0, 1e-9])
def test_a_repetition_time_that_cannot_be_is_refused(told: float) -> None:
    estimator = Estimator(OFF, "s")
    estimator.start_run(1, None)
    with pytest.raises(VolumeError, match=r"t_r_s: expected 0\.01 to 30 s"):
        estimator.step(volume(0, t_r_s=told))
    estimator.step(volume(1))
