"""Scores for feedback: what is told of a volume, against the naive calculation and pandas."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdecode import client as wire
from rtdecode.decoded import Score
from rtdecode.errors import SettingsError
from rtdecode.records import RegisteredVolume, Stamp
from rtdecode.score_settings import FeedbackSettings
from rtdecode.session.feedback import Feedback, TrialFeedback, fisher_z, follow_feedback, no_trial
from rtdecode.settings import parse

TOKENS = np.array([[1.0, 2.0], [0.0, 3.0]], np.float32)

T_R_S = 2.0


def volume(index: int, run: int = 1, **regions: float) -> RegisteredVolume:
    return RegisteredVolume(
        stamp=Stamp(session="s", run=run, volume=index, received_s=0.0, received_mono_s=0.0),
        masked=np.zeros(1, np.float32),
        matrix=np.eye(4),
        motion=np.zeros(6),
        fd_mm=0.0,
        dvars=0.0,
        tsnr=0.0,
        fit=1.0,
        regions=regions,
        parcels={},
        t_r_s=T_R_S,
    )


def play(values: list[float], others: list[float] | None = None, **told: Any) -> list[wire.Feedback]:
    follower = Feedback(FeedbackSettings(**{"score": "region", "regions": ("a",), **told}))
    rest = others or [0.0] * len(values)
    pairs = enumerate(zip(values, rest, strict=True))
    return [follower.add(volume(i, a=a, b=b), took_s=0.1) for i, (a, b) in pairs]


def test_the_first_volumes_are_the_baseline_and_are_not_shown() -> None:
    found = play([1.0, 3.0, 2.0, 4.0, 7.0], baseline_volumes=3, bounds=(0.0, 4.0), steps=8)
    assert [one.state for one in found] == ["baseline"] * 3 + ["shown"] * 2
    assert [one.value for one in found] == [None, None, None, 2.0, 5.0]
    assert [(one.level, one.step) for one in found[3:]] == [(0.5, 4), (1.0, 8)]  # what lies outside is clipped
    assert [one.raw for one in found] == [1.0, 3.0, 2.0, 4.0, 7.0]
    assert all(one.final and one.invalid is None for one in found)


def test_in_units_of_the_baseline() -> None:
    baseline = [0.5, -0.2, 0.9, 0.1]
    last = play([*baseline, 1.4], baseline_volumes=4, unit="z")[-1]
    assert last.value == pytest.approx((1.4 - np.mean(baseline)) / np.std(baseline, ddof=1))
    assert play([1.0, 1.0, 1.0, 5.0], baseline_volumes=3, unit="z")[-1].value == 0.0  # a baseline that does not vary


def test_a_difference_is_of_the_first_region_less_the_second() -> None:
    found = play([1.0, 5.0], [0.25, 2.0], score="difference", regions=("a", "b"), baseline_volumes=0)
    assert [one.value for one in found] == [0.75, 3.0]


def test_a_connectivity_is_the_correlation_of_a_sliding_window() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(40)
    b = 0.7 * a + rng.standard_normal(40)
    found = play(a.tolist(), b.tolist(), score="connectivity", regions=("a", "b"), baseline_volumes=0, window_s=20.0)
    assert [one.state for one in found[:4]] == ["held"] * 4
    assert found[3].invalid == "a correlation needs 5 volumes"
    for last in (4, 9, 25, 39):
        recent = slice(max(0, last - 9), last + 1)
        assert found[last].value == pytest.approx(np.arctanh(np.corrcoef(a[recent], b[recent])[0, 1]))
    assert fisher_z(np.ones(6), np.arange(6.0)) == 0.0
    assert np.isfinite(fisher_z(np.arange(6.0), np.arange(6.0)))


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=40), st.floats(0.5, 20))
def test_smoothing_is_that_of_pandas(values: list[float], half_life_s: float) -> None:
    found = play(values, baseline_volumes=0, half_life_s=half_life_s)
    expected = pd.Series(values).ewm(halflife=half_life_s / T_R_S, adjust=False).mean()
    np.testing.assert_allclose([one.value for one in found], expected, atol=1e-9)


def test_the_past_fades_over_volumes_that_did_not_come() -> None:
    follower = Feedback(FeedbackSettings(score="region", regions=("a",), baseline_volumes=0, half_life_s=4.0))
    follower.add(volume(0, a=0.0), took_s=0.0)
    told = follower.skipped(1, "lost")
    assert (told.state, told.value, told.invalid) == ("held", 0.0, "lost")
    assert follower.add(volume(4, a=1.0), took_s=0.0).value == 0.75  # 8 s: two half lives


@pytest.mark.parametrize(
    ("index", "value", "censored", "reason"),
    [
        (3, 9.0, True, "the head moved: the volume is left out"),
        (3, np.nan, False, "the volumes before do not predict this one"),
    ],
)
def test_what_cannot_be_used_holds_what_was_shown_and_does_not_count(
    index: int, value: float, censored: bool, reason: str
) -> None:
    settings = FeedbackSettings(score="region", regions=("a",), baseline_volumes=2, half_life_s=4.0)
    follower, without = Feedback(settings), Feedback(settings)
    for i, one in enumerate([1.0, 1.0, 2.0]):
        for each in (follower, without):
            each.add(volume(i, a=one), took_s=0.0)
    held = follower.add(replace(volume(index, a=value), censored=censored), took_s=0.0)
    assert (held.state, held.value, held.invalid) == ("held", 1.0, reason)
    newest = volume(5, a=3.0)
    assert follower.add(newest, took_s=0.0) == without.add(newest, took_s=0.0)


def test_a_late_value_is_not_shown_but_counts() -> None:
    settings = FeedbackSettings(score="region", regions=("a",), baseline_volumes=0, half_life_s=2.0, deadline_s=0.5)
    late, timely = Feedback(settings), Feedback(settings)
    told = [late.add(volume(i, a=float(i)), took_s=0.6 if i == 1 else 0.1) for i in range(3)]
    in_time = [timely.add(volume(i, a=float(i)), took_s=0.1) for i in range(3)]
    assert [one.state for one in told] == ["shown", "held", "shown"]
    assert told[1].invalid == "late: 0.60 s after the volume arrived"
    assert told[2] == in_time[2]


def test_each_run_has_its_own_baseline() -> None:
    follower = Feedback(FeedbackSettings(score="region", regions=("a",), baseline_volumes=1))
    follower.add(volume(0, a=5.0), took_s=0.0)
    assert follower.add(volume(1, a=6.0), took_s=0.0).value == 1.0
    assert follower.add(volume(0, run=2, a=1.0), took_s=0.0).state == "baseline"
    assert follower.add(volume(1, run=2, a=4.0), took_s=0.0).value == 3.0


def score(**changes: Any) -> Score:
    told: dict[str, Any] = {
        spec.name: None for spec in fields(Score) if spec.default is MISSING and spec.default_factory is MISSING
    }
    return Score(**{**told, "probabilities": {"face": 0.7, "house": 0.3}, "supported": True, "refused": "", **changes})


def of(settings: FeedbackSettings, found: Score, *, took_s: float = 0.3, **more: Any) -> wire.Feedback | None:
    nothing: Any = None
    return TrialFeedback(settings, **more).of(nothing, found, TOKENS, took_s=took_s)


def test_of_a_trial_its_target_is_shown_where_the_trial_is_supported() -> None:
    settings = FeedbackSettings(score="category", target="house", steps=10)
    shown = of(settings, score())
    assert shown is not None
    assert (shown.state, shown.value, shown.level, shown.step, shown.target) == ("shown", 0.3, 0.3, 3, "house")
    refused = of(settings, score(supported=False, refused="no picture was found in the response"))
    assert refused is not None
    assert (refused.state, refused.invalid) == ("held", "no picture was found in the response")
    late = of(settings, score(), took_s=1.5)
    assert late is not None
    assert (late.state, late.invalid) == ("held", "late: 1.50 s after the volume arrived")
    none = no_trial(settings, "lost")
    assert none is not None
    assert (none.state, none.value, none.final, none.invalid) == ("held", None, True, "lost")
    assert of(FeedbackSettings(), score()) is None
    assert no_trial(FeedbackSettings(), "lost") is None


def test_other_scores_of_trials() -> None:
    found = score(probabilities={"face": 0.6, "house": 0.2, "cat": 0.2}, posterior={"face1": 0.125, "cat2": 0.875})
    wanted = np.array([[3.0, 4.0], [0.0, 12.0]], np.float32)
    angle = float(np.vdot(TOKENS, wanted) / (np.linalg.norm(TOKENS) * np.linalg.norm(wanted)))
    for settings, value in (
        (FeedbackSettings(score="two_alternative", target="face", foil="house"), 0.75),
        (FeedbackSettings(score="retrieval", target="face1"), 0.125),
        (FeedbackSettings(score="similarity", target="there"), angle),
    ):
        told = of(settings, found, targets={"there": wanted}.get)
        assert told is not None
        assert told.value == pytest.approx(value)
        low, high = settings.display()
        assert told.level == pytest.approx((value - low) / (high - low))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (FeedbackSettings(score="category", target="cat"), "expected a category of the decoder (face, house)"),
        (FeedbackSettings(score="two_alternative", target="face", foil="x"), "expected a category of the decoder"),
        (FeedbackSettings(score="retrieval", target="cat"), "expected one of the 2 candidates of the retrieval pool"),
        (FeedbackSettings(score="similarity", target="cat"), "expected a picture of the file decode.pool"),
    ],
)
def test_an_unknown_target_holds_what_was_shown_and_says_why(settings: FeedbackSettings, said: str) -> None:
    told = of(settings, score(posterior={"a": 0.5, "b": 0.5}, pool=2))
    assert told is not None
    assert (told.state, told.value) == ("held", None)
    assert said in (told.invalid or "")


def test_the_display_takes_its_bounds_from_the_calibration_runs() -> None:
    settings = FeedbackSettings(
        score="region", regions=("a",), baseline_volumes=0, percentiles=(10.0, 90.0), bounds=(-5.0, 5.0)
    )
    follower = Feedback(settings, calibration_runs=1)
    values = np.random.default_rng(0).standard_normal(50)
    first = [follower.add(volume(i, a=value), took_s=0.0) for i, value in enumerate(values)]
    assert first[0].level == pytest.approx((values[0] + 5) / 10)
    low, high = np.percentile(values, (10.0, 90.0))
    for run in (2, 3):
        told = follower.add(volume(0, run=run, a=0.25), took_s=0.0)
        assert told.level == pytest.approx((0.25 - low) / (high - low))
    follower.change(replace(settings, half_life_s=2.0))
    assert follower.add(volume(1, run=3, a=0.25), took_s=0.0).level == pytest.approx((0.25 - low) / (high - low))


def test_settings_of_a_score_are_checked(tmp_path: Any) -> None:
    def problems(**feedback: Any) -> str:
        raw = {
            "session": {"participant": "01"},
            "scanner": {"export_dir": "."},
            "estimate": {"regions": {"ffa": "a.nii", "ppa": "b.nii"}},
            "feedback": feedback,
        }
        try:
            parse(raw, root=tmp_path)
        except SettingsError as error:
            return str(error)
        return ""

    assert problems(score="difference", regions=["ffa", "ppa"]) == ""
    assert "expected 1 for the score region, got ['ffa', 'ppa']" in problems(score="region", regions=["ffa", "ppa"])
    assert "expected 2 for the score connectivity" in problems(score="connectivity", regions=["ffa", "ffa"])
    assert "expected names of estimate.regions (ffa, ppa), got 'v1'" in problems(score="region", regions=["v1"])
    assert "expected the lower before the higher" in problems(score="region", regions=["ffa"], bounds=[1.0, 1.0])
    assert "expected 3 or more for the unit z" in problems(
        score="region", regions=["ffa"], unit="z", baseline_volumes=2
    )
    assert problems(score="category", target="face") == ""
    assert "similarity), got ''" in problems(score="category")
    assert "expected 0 for the score category, got ['ffa']" in problems(
        score="category", target="face", regions=["ffa"]
    )
    assert "similarity), got 'face'" in problems(score="region", regions=["ffa"], target="face")
    assert "expected another category for two_alternative alone" in problems(score="two_alternative", target="a")
    assert "foil" in problems(score="two_alternative", target="a", foil="a")
    assert problems(score="two_alternative", target="a", foil="b") == problems(score="similarity", target="a") == ""
    assert "expected two of 0 to 100" in problems(score="region", regions=["ffa"], percentiles=[90.0, 10.0])
    assert follow_feedback(FeedbackSettings()) is None
    assert follow_feedback(FeedbackSettings(score="category", target="face")) is None
