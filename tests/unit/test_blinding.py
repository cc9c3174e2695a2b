"""Nobody can tell sham from real but who holds the key; and only real feedback teaches."""

from __future__ import annotations

import logging
import math
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rtdecode import client as wire
from rtdecode.blinding.allocation import (
    Arm,
    Envelope,
    allocate,
    new_key,
    read_key,
    read_seals,
    seal_of,
    write_seals,
)
from rtdecode.blinding.sham import PhaseScrambled, RandomWalk, TimeShifted, Yoked, scrambled
from rtdecode.decoded import Score
from rtdecode.errors import SettingsError
from rtdecode.protocol_file import ShamPlan
from rtdecode.records import BetaUpdate, Stamp, TrialEvent
from rtdecode.score_settings import FeedbackSettings
from rtdecode.session.blind import Blind
from rtdecode.session.feedback import Feedback, TrialFeedback
from tests.blinded import SETTINGS, T_R_S, Observed, arms, noise, registered, seal_for, session
from tests.unit.test_feedback import score

SESSIONS = 400
KINDS = ("yoked", "time_shifted", "phase_scrambled", "random_walk", "other")


# the allocation -------------------------------------------------------------------------------------------------


def test_an_allocation_is_balanced_and_opens_with_its_key_alone(tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert read_key(tmp_path / "key") == key
    people = [f"{n:02d}" for n in range(1, 41)]
    write_seals(tmp_path / "a.json", allocate("p", people, key))
    seals = read_seals(tmp_path / "a.json")
    found = [seal.arm(key) for seal in seals]
    for block in range(10):
        assert Counter(found[4 * block : 4 * block + 4]) == {"real": 2, "sham": 2}
    assert len({seal.hash for seal in seals}) == 40
    text = (tmp_path / "a.json").read_text()
    assert "real" not in text
    assert "sham" not in text
    with pytest.raises(SettingsError, match="expected the key that the allocation was sealed with"):
        seals[0].arm(secrets.token_bytes(32))
    other = next(seal for seal in seals if seal.arm(key) != found[0])
    with pytest.raises(SettingsError, match="altered"):  # a hash of another participant does not fit
        type(other)(protocol="p", participant="01", nonce=other.nonce, hash=other.hash).arm(key)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    write_seals(tmp_path / "a.json", allocate("p", ["01"], key))
    with pytest.raises(SettingsError, match="expected participant 02 in the allocation, found none"):
        seal_of(tmp_path / "a.json", "p", "02")
    with pytest.raises(SettingsError, match="expected an allocation for protocol q, got one for p"):
        seal_of(tmp_path / "a.json", "q", "01")
    with pytest.raises(SettingsError, match="exists already"):
        new_key(tmp_path / "key")
    with pytest.raises(SettingsError, match="drawn once"):
        write_seals(tmp_path / "a.json", ())
    (tmp_path / "bad").write_text("no key")
    with pytest.raises(SettingsError, match="no digits of base 16"):
        read_key(tmp_path / "bad")
    with pytest.raises(SettingsError, match="expected each once"):
        allocate("p", ["01", "01"], key)
    with pytest.raises(SettingsError, match="expected an even number"):
        allocate("p", ["01"], key, block=3)


def test_an_envelope_opens_with_the_key_and_shows_nothing_without() -> None:
    key = secrets.token_bytes(32)
    envelope = Envelope(key, "s")
    closed = [envelope.close(f"run 1 volume {v}", (1.0, 2.0, math.nan, v)) for v in range(4)]
    assert {len(one) for one in closed} == {48}
    assert envelope.open("run 1 volume 3", closed[3])[3] == 3.0
    np.testing.assert_array_equal(envelope.open("run 1 volume 0", closed[0]), (1.0, 2.0, math.nan, 0.0))
    for wrong in (Envelope(secrets.token_bytes(32), "s"), Envelope(key, "t")):
        with pytest.raises(SettingsError, match="another key"):
            wrong.open("run 1 volume 3", closed[3])
    with pytest.raises(SettingsError, match="altered"):
        envelope.open("run 1 volume 3", closed[3][:-1] + b"x")
    same = [np.frombuffer(one[:32], np.uint8) for one in (closed[0], closed[1])]
    assert (same[0] != same[1]).mean() > 0.8  # equal numbers do not look equal


# shams ----------------------------------------------------------------------------------------------------------


def autocorrelation(series: Any) -> float:
    return float(np.corrcoef(series[1:], series[:-1])[0, 1])


def test_a_random_walk_has_mean_variance_and_autocorrelation_of_the_score_and_no_more_in_common() -> None:
    rng = np.random.default_rng(0)
    red = noise(rng, 0.7)
    real = np.array([2.0 + 3.0 * next(red) for _ in range(6000)])
    walk = RandomWalk(1)
    made = np.array([walk.next((1, i), value, 0.0) for i, value in enumerate(real)])[1000:]
    assert made.mean() == pytest.approx(2.0, abs=0.5)
    assert made.std() == pytest.approx(3.0, rel=0.1)
    assert autocorrelation(made) == pytest.approx(0.7, abs=0.05)
    assert abs(np.corrcoef(made, real[1000:])[0, 1]) < 0.1


@pytest.mark.parametrize("n", [60, 61])
def test_scrambled_phases_keep_the_spectrum(n: int) -> None:
    rng = np.random.default_rng(0)
    red = noise(rng)
    series = np.array([5 + next(red) for _ in range(n)])
    made = scrambled(series, rng)
    np.testing.assert_allclose(np.abs(np.fft.fft(made)), np.abs(np.fft.fft(series)), atol=1e-9)
    assert made.mean() == pytest.approx(series.mean())
    assert made.std() == pytest.approx(series.std())
    assert abs(np.corrcoef(made, series)[0, 1]) < 0.5


def test_each_kind_takes_what_it_says() -> None:
    shifted = TimeShifted(3, 0)
    assert [shifted.next((1, i), float(i), 0.0) for i in range(8)][3:] == [0.0, 1.0, 2.0, 3.0, 4.0]
    yoked = Yoked({(1, 0): 7.0, (1, 2): 9.0}, 0)
    assert [yoked.next((1, i), 1.0, 0.0) for i in range(3)] == [7.0, 1.0, 9.0]  # a walk of no variance stands in
    phases = PhaseScrambled(0)
    own = [float(v) for v in np.random.default_rng(1).standard_normal(20)]
    for i, value in enumerate(own):
        phases.next((1, i), value, 0.0)
    second = [phases.next((2, i), 100.0, 0.0) for i in range(20)]
    np.testing.assert_allclose(np.abs(np.fft.rfft(second)), np.abs(np.fft.rfft(own)), atol=1e-9)


# one path for both arms -----------------------------------------------------------------------------------------


def played(arm: Arm, kind: Any = "other") -> tuple[list[wire.Feedback], Blind, list[tuple[str, bytes]], bytes]:
    key = b"k" * 32
    kept: list[tuple[str, bytes]] = []
    plan = ShamPlan(kind=kind, regions=("other",) if kind == "other" else ())
    blind = Blind(seal_for(arm, key), key, plan, "s", T_R_S, lambda place, one: kept.append((place, one)))
    follower = Feedback(SETTINGS, blind)
    rng = np.random.default_rng(3)
    told = []
    for i in range(30):
        own, other = rng.standard_normal(2)
        told.append(follower.add(registered(1, i, own, other, censored=i == 12), took_s=2.0 if i == 20 else 0.0))
    return told, blind, kept, key


def test_the_sham_is_told_as_a_score_would_be() -> None:
    real, sham = played("real")[0], played("sham")[0]
    assert [m.state for m in real] == [m.state for m in sham]
    assert [m.invalid for m in real] == [m.invalid for m in sham]
    rng = np.random.default_rng(3)
    own, other = rng.standard_normal((30, 2)).T
    for told, series, column in ((real, own, 0), (sham, other, 1)):
        assert [m.raw for m in told if m.raw is not None] == [v for i, v in enumerate(series) if i != 12], column
        plain = Feedback(replace(SETTINGS, regions=(("own", "other")[column],)))
        for i, message in enumerate(told):
            alone = plain.add(registered(1, i, own[i], other[i], censored=i == 12), took_s=2.0 if i == 20 else 0.0)
            assert alone == replace(message, regions=alone.regions)


def test_the_envelopes_hold_score_and_sham_of_both_arms() -> None:
    found = []
    for arm in ("real", "sham"):
        told, _, kept, key = played(arm)  # type: ignore[arg-type]
        assert [place for place, _ in kept] == [f"run 1 volume {i}" for i in range(30) if i != 12]
        opened = [Envelope(key, "s").open(place, one) for place, one in kept]
        column = ("real", "sham").index(arm)
        assert [values[column] for values in opened] == [m.raw for m in told if m.raw is not None]
        shown = [m.value for m in told if m.raw is not None]
        np.testing.assert_array_equal([v[2 + column] for v in opened], [math.nan if v is None else v for v in shown])
        found.append(opened)
    np.testing.assert_array_equal(found[0], found[1])


def test_of_a_decoded_trial_the_sham_is_told_and_nothing_that_tells_it_apart() -> None:
    key = b"k" * 32
    settings = FeedbackSettings(score="category", target="house")
    nothing: Any = np.zeros(1, np.float32)
    event = TrialEvent(run=1, trial="t", onset_s=0.0, duration_s=1.0)
    stamp = Stamp(session="s", run=1, volume=3, received_s=0.0, received_mono_s=0.0)
    beta = BetaUpdate(stamp=stamp, event=event, revision=0, final=True, delay_s=8.0, beta=nothing)
    values = {}
    for arm in ("real", "sham"):
        kept: list[tuple[str, bytes]] = []
        plan = ShamPlan(kind="other", target="face")
        keep: Any = lambda place, one, kept=kept: kept.append((place, one))  # noqa: E731
        blind = Blind(seal_for(arm, key), key, plan, "s", T_R_S, keep)  # type: ignore[arg-type]
        follower = TrialFeedback(settings, blind)
        assert follower.withholds
        found: Score = score()
        told = follower.of(beta, found, np.zeros((1, 2)), took_s=0.1)
        assert told is not None
        values[arm] = (told.value, told.state, told.target)
        assert Envelope(key, "s").open(*kept[0]) == (0.3, 0.7, 0.3, 0.7)
    assert values == {"real": (0.3, "shown", "house"), "sham": (0.7, "shown", "house")}
    assert not TrialFeedback(settings).withholds


# a classifier that is given all that can be observed ------------------------------------------------------------


def features(seen: Observed, lines: list[str]) -> list[float]:
    """Every timing, size, topic, sequence and log line of a session."""
    times = np.array([at for at, *_ in seen.sent])
    found: list[float] = [len(seen.sent), len(seen.kept), len(seen.journalled), len(lines), sum(map(len, lines))]
    for topic in ("volume", "feedback"):
        own = [(at, size, message) for at, name, size, message in seen.sent if name == topic]
        sizes = np.array([size for _, size, _ in own])
        gaps = np.diff([at for at, _, _ in own])
        seq = [message.seq or 0 for _, _, message in own]
        found += [len(own), sizes.sum(), sizes.mean(), sizes.std(), sizes.min(), sizes.max(), max(seq)]
        found += [*np.quantile(gaps, [0.05, 0.25, 0.5, 0.75, 0.95]), gaps.sum(), float(np.sum(np.diff(seq) != 1))]
    feedback = [message for *_, message in seen.sent if isinstance(message, wire.Feedback)]
    states = Counter(message.state for message in feedback)
    found += [states["shown"], states["held"], states["baseline"], sum(m.invalid is not None for m in feedback)]
    took = [message.stages["total"] for message in feedback if message.stages]
    found += [*np.quantile(took, [0.05, 0.25, 0.5, 0.75, 0.95]), float(np.mean(took))]
    after = [sealed - times[times < sealed].max() for sealed, _ in seen.journalled]
    found += [*np.quantile(after, [0.25, 0.5, 0.75]), float(np.sum([size for _, size in seen.journalled]))]
    return found


def observe(
    n: int, caplog: pytest.LogCaptureFixture, spoil: Callable[[Observed, Arm], None] = lambda seen, arm: None
) -> tuple[Any, Any]:
    rng = np.random.default_rng(11)
    drawn = arms(n, rng)
    rows = []
    caplog.set_level(logging.DEBUG)
    for number, arm in enumerate(drawn):
        kind: Any = KINDS[number % len(KINDS)]
        plan = ShamPlan(kind=kind, regions=("other",) if kind == "other" else (), shift_s=15.0)
        own, other = noise(rng), noise(rng)
        donor = {(run, v): float(rng.standard_normal()) for run in (1, 2) for v in range(18)}
        caplog.clear()
        seen, _ = session(
            arm, plan, lambda *_, a=own, b=other: (next(a), next(b)), rng, runs=2, volumes=18, donor=donor
        )
        spoil(seen, arm)
        rows.append(features(seen, [record.getMessage() for record in caplog.records]))
    return np.array(rows), np.array([arm == "sham" for arm in drawn])


def told_apart(rows: Any, sham: Any, model: Any) -> tuple[float, float, float]:
    """How often held-out sessions are told rightly, with the exact 99.99 % interval."""
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    right = int((cross_val_predict(model, rows, sham, cv=folds) == sham).sum())
    interval = stats.binomtest(right, len(sham)).proportion_ci(0.9999, method="exact")
    return right / len(sham), interval.low, interval.high


def models() -> list[Any]:
    return [
        RandomForestClassifier(100, min_samples_leaf=3, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
    ]


def test_nothing_that_can_be_observed_tells_sham_from_real(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, sham = observe(SESSIONS, caplog)
    assert len(rows) == SESSIONS
    assert sham.sum() == SESSIONS // 2
    for model in models():
        share, low, high = told_apart(rows, sham, model)
        with capsys.disabled():
            print(f" [{type(model).__name__}: {share:.1%} of {SESSIONS} told rightly, {low:.1%} to {high:.1%}]", end="")
        assert low < 0.5, "a session's arm can be told from what can be observed"
        assert share < 0.6


@pytest.mark.parametrize("leak", ["a size", "a log line", "a delay"])
def test_the_classifier_finds_what_a_careless_sham_would_tell(leak: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each of a few bytes, one line and .1 ms of a sham is enough for the test above to fail."""

    def spoil(seen: Observed, arm: Arm) -> None:
        if arm == "real":
            return
        if leak == "a log line":
            logging.getLogger("rtdecode.session").info("sham drawn")
        if leak == "a size":
            seen.sent = [(at, topic, size - 8 * (topic == "feedback"), m) for at, topic, size, m in seen.sent]
        if leak == "a delay":
            seen.sent = [
                (at, topic, size, replace(m, stages={"total": m.stages["total"] + 0.1}) if m.stages else m)
                for at, topic, size, m in seen.sent
            ]

    rows, sham = observe(60, caplog, spoil)
    share, low, _ = told_apart(rows, sham, models()[0])
    assert low > 0.5, share


# who is shown the score learns to regulate ------------------------------------------------------------------------


class Learner:
    """A participant who tries strategies, and takes again what was followed by a high display.

    One strategy in `STRATEGIES` moves the region; nobody has told which.
    """

    STRATEGIES, BLOCK, GAIN = 6, 8, 2.0

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._noise = (noise(rng, 0.3), noise(rng, 0.3))
        self._right = int(rng.integers(self.STRATEGIES))
        self._worth = np.zeros(self.STRATEGIES)
        self._tried = 0
        self._seen: list[float] = []
        self.success: dict[int, list[float]] = {}

    def __call__(self, run: int, index: int, shown: wire.Feedback | None) -> tuple[float, float]:
        if index >= SETTINGS.baseline_volumes and index % self.BLOCK == 0:
            self._choose()
        elif shown is not None and shown.level is not None and index % self.BLOCK > 2:
            self._seen.append(shown.level)
        regulates = index >= SETTINGS.baseline_volumes
        response = self.GAIN * (regulates and self._tried == self._right)
        if regulates:
            self.success.setdefault(run, []).append(response)
        return response + next(self._noise[0]), next(self._noise[1])

    def _choose(self) -> None:
        if self._seen:
            self._worth[self._tried] += 0.5 * (np.mean(self._seen) - 0.5 - self._worth[self._tried])
        self._seen.clear()
        likely = np.exp(12.0 * self._worth)
        self._tried = int(self._rng.choice(self.STRATEGIES, p=likely / likely.sum()))


def gain_of(arm: Arm, kind: Any, seed: int) -> float:
    """Regulation in the last run less that in the first, in standard deviations of the region."""
    rng = np.random.default_rng(seed)
    learner = Learner(rng)
    donor = {(run, v): float(rng.standard_normal()) for run in range(1, 5) for v in range(56)}
    plan = ShamPlan(kind=kind, regions=("other",) if kind == "other" else ())
    session(arm, plan, learner, rng, runs=4, volumes=56, donor=donor, lost=0.02)
    return float(np.mean(learner.success[4]) - np.mean(learner.success[1]))


def test_real_participants_improve_and_those_of_the_sham_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    gains = {
        "real": np.array([gain_of("real", KINDS[seed % 5], seed) for seed in range(20)]),
        "sham": np.array([gain_of("sham", KINDS[seed % 5], 100 + seed) for seed in range(20)]),
    }
    intervals = {arm: stats.t.interval(0.95, 19, values.mean(), stats.sem(values)) for arm, values in gains.items()}
    with capsys.disabled():
        for arm, (low, high) in intervals.items():
            print(f" [{arm}: {gains[arm].mean():+.2f} SD, 95 % {low:+.2f} to {high:+.2f}]", end="")
    assert intervals["real"][0] > 0
    assert intervals["sham"][0] < 0 < intervals["sham"][1]
    assert stats.ttest_ind(gains["real"], gains["sham"], equal_var=False).pvalue < 0.01
