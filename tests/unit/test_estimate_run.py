"""The growing run against an independent batch fit at every volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rtdecode.estimate.design import RunTiming
from rtdecode.estimate.glm import Expectation, Scales
from rtdecode.estimate.run import RunSeries
from rtdecode.records import TrialEvent

T_R_S, PHASE_S, HIGH_PASS_HZ = 2.0, 0.7, 0.012
N_VOXELS = 20


def naive_regressor(rows: np.ndarray, onset_s: float, duration_s: float) -> np.ndarray:
    """SPM's response, integrated in closed form by scipy's gamma distribution."""

    def integral(t: np.ndarray) -> np.ndarray:
        t = np.clip(t, 0, 32)
        late = stats.gamma.cdf(t, 16)
        full = stats.gamma.cdf(32, 6) - 0.167 * stats.gamma.cdf(32, 16)
        return (stats.gamma.cdf(t, 6) - 0.167 * late) / full

    since = rows * T_R_S + PHASE_S - onset_s
    return integral(since) - integral(since - duration_s)


@dataclass
class Case:
    kept: np.ndarray
    series: np.ndarray
    motion: np.ndarray
    onsets_s: list[float]
    known_from: list[int]
    expected: Expectation


def naive_betas(case: Case, rows: np.ndarray, events: list[TrialEvent]) -> dict[int, np.ndarray]:
    """All trials that have entered, by least squares on whitened and augmented rows, in float64."""
    lag_s, scales = case.expected.lag_s, case.expected.scales
    columns, places = [], []
    for place, event in enumerate(events):
        onset_s = event.onset_s + lag_s
        everywhere = naive_regressor(np.arange(-20, 400), onset_s, event.duration_s)
        regressor = naive_regressor(rows, onset_s, event.duration_s)
        if regressor @ regressor >= 0.05 * (everywhere @ everywhere):
            columns.append(regressor)
            places.append(place)
    if not places:
        return {}
    trials = np.stack(columns, axis=1)
    length = rows[-1] + 1
    count = int(2 * length * T_R_S * HIGH_PASS_HZ)
    drift = [np.cos(np.pi * k * (rows + 0.5) / length) for k in range(1, count + 1)]
    motion = case.motion[rows] * [1, 1, 1, 50, 50, 50]
    design = np.column_stack([np.ones(len(rows)), *drift, motion - motion.mean(0), trials])
    first = 1 + count + 6
    series = case.series[rows].astype(np.float64)
    percent = 100 * (series / series.mean(0) - 1)
    if scales is not None:
        design = np.column_stack([design, trials.sum(1)])
        walk = [2 * length * T_R_S / (np.pi * k) ** 2 for k in range(1, count + 1)]
        variance = [scales.drift_per_s * w for w in walk] + [scales.motion_per_mm2] * 6
        variance += [scales.trial] * len(places) + [scales.mean]
        percent = percent - np.outer(trials.sum(1), case.expected.mean_response)
        root = np.zeros((len(rows), len(rows)))
        for i in range(len(rows)):
            follows = i > 0 and rows[i] == rows[i - 1] + 1
            root[i, i] = 1 if follows else np.sqrt(1 - scales.rho**2)
            if follows:
                root[i, i - 1] = -scales.rho
        prior = np.hstack([np.zeros((len(variance), 1)), np.diag(1 / np.sqrt(variance))])
        design = np.vstack([root @ design, prior])
        percent = np.vstack([root @ percent, np.zeros((len(variance), N_VOXELS))])
    if np.linalg.matrix_rank(design, tol=1e-7) < design.shape[1]:
        return {}
    fitted = np.linalg.lstsq(design, percent, rcond=None)[0]
    return {place: fitted[first + i] for i, place in enumerate(places)}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length = draw(st.integers(30, 70))
    kept = rng.random(length) >= draw(st.sampled_from([0.0, 0.1, 0.3]))
    kept[0] = True
    baseline = rng.uniform(300, 1500, N_VOXELS)
    wander = rng.standard_normal((length, N_VOXELS)).cumsum(0)
    series = baseline * (1 + 0.01 * rng.standard_normal((length, N_VOXELS)) + 0.003 * wander)
    motion = rng.standard_normal((length, 6)).cumsum(0) * [0.05, 0.05, 0.05, 0.001, 0.001, 0.001]
    n = draw(st.integers(1, 6))
    onsets_s = np.sort(rng.uniform(0, length * T_R_S, n)).tolist()
    known_from = [draw(st.integers(0, length - 1)) for _ in range(n)]
    scales = draw(
        st.sampled_from(
            [
                Scales(trial=0.3, mean=0.05, drift_per_s=0.01, motion_per_mm2=1.0, rho=0.3),
                Scales(trial=8.0, mean=50.0, drift_per_s=0.3, motion_per_mm2=40.0, rho=0.0),
            ]
        )
    )
    expected = Expectation(
        scales=scales,
        lag_s=draw(st.sampled_from([0.0, -3.0, 1.5])),
        mean_response=rng.standard_normal(N_VOXELS).astype(np.float32),
    )
    return Case(kept, series.astype(np.float32), motion, onsets_s, known_from, expected)


def compare(case: Case, every: int = 1) -> int:
    """Feed the run volume by volume, trials growing; return how many betas were compared."""
    timing = RunTiming(t_r_s=T_R_S, phase_s=PHASE_S, high_pass_hz=HIGH_PASS_HZ, hrf="spm")
    run = RunSeries(timing, confounds="6")
    events: list[TrialEvent] = []
    waiting = list(range(len(case.onsets_s)))
    compared = 0
    for index in range(len(case.series)):
        for i in [i for i in waiting if case.known_from[i] <= index]:
            waiting.remove(i)
            events.append(TrialEvent(run=1, trial=str(i), onset_s=case.onsets_s[i], duration_s=3.0))
        if case.kept[index]:
            run.add(index, case.series[index], case.motion[index])
        if not events or index % every:
            continue
        values, reasons = run.betas(range(len(events)), events, case.expected)
        rows = np.flatnonzero(case.kept[: index + 1])
        batch = naive_betas(case, rows, events)
        assert [reason is None for reason in reasons] == [i in batch for i in range(len(events))]
        worst, largest = np.zeros(N_VOXELS), np.zeros(N_VOXELS)
        for i, beta in batch.items():
            compared += 1
            worst = np.maximum(worst, np.abs(values[i] - beta))
            largest = np.maximum(largest, np.abs(beta))
        assert (worst <= 1e-6 * largest).all()
        assert np.isnan(values[[i for i in range(len(events)) if i not in batch]]).all()
    return compared


@settings(max_examples=25, deadline=None)
@given(cases())
def test_incremental_equals_batch_at_every_volume(case: Case) -> None:
    compare(case)


def test_incremental_equals_batch_in_a_long_run() -> None:
    rng = np.random.default_rng(0)
    length = 250
    kept = np.ones(length, bool)
    kept[rng.choice(np.arange(1, length), 15, replace=False)] = False
    series = 1000 * (1 + 0.01 * rng.standard_normal((length, N_VOXELS)))
    case = Case(
        kept=kept,
        series=series.astype(np.float32),
        motion=rng.standard_normal((length, 6)).cumsum(0) * 0.002,
        onsets_s=np.arange(4.0, 480.0, 11.0).tolist(),
        known_from=[0] * 44,
        expected=Expectation(
            scales=Scales(trial=1.0, mean=0.1, drift_per_s=0.01, motion_per_mm2=1.0, rho=0.4),
            mean_response=np.ones(N_VOXELS, np.float32),
        ),
    )
    assert compare(case, every=6) > 700


def test_least_squares_equals_batch_once_it_can_be_had() -> None:
    rng = np.random.default_rng(1)
    series = 800 * (1 + 0.01 * rng.standard_normal((90, N_VOXELS)))
    case = Case(
        kept=rng.random(90) > 0.1,
        series=series.astype(np.float32),
        motion=rng.standard_normal((90, 6)) * 0.1,
        onsets_s=[5.0, 40.0, 90.0, 130.0],
        known_from=[0, 0, 50, 80],
        expected=Expectation(scales=None),
    )
    case.kept[0] = True
    timing = RunTiming(t_r_s=T_R_S, phase_s=PHASE_S, high_pass_hz=HIGH_PASS_HZ, hrf="spm")
    run = RunSeries(timing, confounds="6")
    events = [TrialEvent(run=1, trial=str(o), onset_s=o, duration_s=3.0) for o in case.onsets_s]
    for index in np.flatnonzero(case.kept).tolist():
        run.add(index, case.series[index], case.motion[index])
    values, reasons = run.betas(range(4), events, case.expected)
    batch = naive_betas(case, np.flatnonzero(case.kept), events)
    assert reasons == [None] * 4
    for i, beta in batch.items():
        assert np.abs(values[i] - beta).max() <= 1e-6 * np.abs(beta).max()


def test_a_singular_design_is_a_reason_not_an_error() -> None:
    run = RunSeries(RunTiming(t_r_s=T_R_S, phase_s=PHASE_S, high_pass_hz=0.0, hrf="spm"), confounds="none")
    for index in range(20):
        run.add(index, np.full(3, 100.0 + index, np.float32), np.zeros(6))
    twins = [TrialEvent(run=1, trial=name, onset_s=4.0, duration_s=3.0) for name in "ab"]
    values, reasons = run.betas([0, 1], twins, Expectation(scales=None))
    assert np.isnan(values).all()
    assert all(reason is not None and "singular design" in reason for reason in reasons)


def test_dark_voxels_have_no_response() -> None:
    run = RunSeries(RunTiming(t_r_s=T_R_S, phase_s=PHASE_S, high_pass_hz=0.0, hrf="spm"), confounds="none")
    rng = np.random.default_rng(0)
    for index in range(20):
        run.add(index, np.array([1000, 900, 0, 1e-4]) * rng.uniform(0.9, 1.1, 4).astype(np.float32), np.zeros(6))
    event = TrialEvent(run=1, trial="a", onset_s=4.0, duration_s=3.0)
    values, _ = run.betas([0], [event], Expectation(scales=None))
    assert np.isfinite(values).all()
    assert (values[0] != 0).tolist() == [True, True, False, False]


def test_too_short_a_run_teaches_nothing() -> None:
    run = RunSeries(RunTiming(t_r_s=T_R_S, phase_s=PHASE_S, high_pass_hz=0.0, hrf="spm"), confounds="none")
    event = TrialEvent(run=1, trial="a", onset_s=4.0, duration_s=3.0)
    for index in range(30):
        assert (run.finished([event]) is None) == (index < 16)
        run.add(index, np.full(3, 100.0, np.float32), np.zeros(6))
    assert run.finished([]) is None
