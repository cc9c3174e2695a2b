"""Checks of a session's decoding, on trials whose truth is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from calibration.calibrator import Calibrator, write_bundle
from calibration.report import checks
from calibration.report.checklist import NOT_STATED, cred_nf
from calibration.report.page import _support, write
from calibration.session_trials import RecordedCalibration, read_calibration
from rtdecode.errors import CalibrationError, SettingsError
from rtdecode.packs import open_participant
from tests.decode_small import tiny_pack
from tests.unit.test_calibration_calibrator import pictures

N_CALIBRATION, N_DECODED = 80, 40


def recorded(folder: Path, *, shuffled: bool = False) -> RecordedCalibration:
    """A session of 80 calibration trials, 24 nulls and 40 decoded trials."""
    candidates, betas = pictures(N_CALIBRATION + N_DECODED, 0)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(betas)) if shuffled else np.arange(len(betas))
    calibrator = Calibrator(candidates)
    for i in range(N_CALIBRATION):
        calibrator.add(betas[order[i]], trial=f"t{i}", stimulus=f"s{i}", run=1 + i // 20)
    nulls = (6 * rng.standard_normal((24, betas.shape[1])) + betas.mean(0)).astype(np.float32)
    for i, beta in enumerate(nulls):
        calibrator.add_null(beta, trial=f"n{i}", run=1 + i % 4)
    calibrator.status()
    write_bundle(
        folder / "bundle",
        calibrator.fit(),
        pack=tiny_pack(),
        participant="01",
        session="01",
        curve=calibrator.curve,
    )
    return RecordedCalibration(
        folder=folder,
        bundle=open_participant(folder / "bundle"),
        pack=tiny_pack(),
        stimuli=None,
        candidates=candidates,
        calibrator=calibrator,
        nulls=nulls,
        rest=np.zeros((0, betas.shape[1]), np.float32),
        decoded=tuple((f"s{i}", betas[order[i]]) for i in range(N_CALIBRATION, len(betas))),
    )


def figures(found: list[checks.Check]) -> dict[str, dict[str, checks.Measured]]:
    return {check.name: check.figures for check in found}


def test_a_session_that_decodes_shows_it_and_noise_gives_nothing(tmp_path: Path) -> None:
    session = recorded(tmp_path)
    rng = np.random.default_rng(2)
    other = rng.standard_normal((30, 120)).astype(np.float32) * 6
    found = checks.run_checks(session, other)
    told = figures(found)
    first, category, _ = told["decoded trials"].values()
    assert first.interval[0] > 0.6
    assert first.n == category.n == N_DECODED
    noise = told["random input"]
    rank, right, _, supported = noise.values()
    assert rank.interval[0] < 0.53
    assert rank.value == pytest.approx(0.5, abs=0.06)
    assert right.value == pytest.approx(1 / 8, abs=0.06)
    assert supported.value < 0.4  # as spread as responses with signal, more than nulls are
    assert told["other participant's brain"]["supported"].value < 0.4
    assert told["oracle ceiling"]["percentile rank with responses as the encoding model expects them"].value > 0.95
    shown, decoded = told["effective rank"]["shown"], told["effective rank"]["decoded"]
    assert 1 <= decoded.value < shown.value
    assert decoded.interval[0] <= decoded.value <= decoded.interval[1]
    widths = [one.value for one in told["bottleneck"].values()]
    assert widths[0] < max(widths[3:])
    assert widths[-1] == pytest.approx(float(session.calibrator.curve[-1].percentile or 0), abs=0.08)
    assert told["rest"] == {}
    assert next(check.not_taken for check in found if check.name == "rest").startswith("trials follow each other")
    unknown = told["unknown categories"]
    assert unknown["percentile rank of the picture shown among all of calibration"].n == N_CALIBRATION

    page = write(session.folder, session, found, tmp_path / "report")
    text = page.read_text()
    assert "<script" not in text
    assert text.count("src=") == text.count('src="data:image/jpeg;base64,')
    content = msgspec.json.decode((tmp_path / "report" / "report.json").read_bytes())
    assert len(content["CRED-nf"]) == 24
    assert all(entry["says"] for entry in content["CRED-nf"])
    assert content["versions"]["bundle identity"] == session.bundle.identity
    for check in found:
        assert check.name.replace("'", "&#x27;") in text


def test_shuffled_announcements_decode_nothing(tmp_path: Path) -> None:
    told = figures(checks.run_checks(recorded(tmp_path, shuffled=True)))
    first = next(iter(told["decoded trials"].values()))
    assert first.interval[0] < 0.55
    assert told["unknown categories"]["percentile rank of the picture shown among all of calibration"].value < 0.6


@pytest.mark.parametrize(("strengths", "expected"), [([1.0, 1.0, 1.0], 3.0), ([1.0, 0.0, 0.0], 1.0)])
def test_the_effective_rank_counts_equal_directions(strengths: list[float], expected: float) -> None:
    values = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * np.array(strengths)
    assert checks.effective_rank(values) == pytest.approx(expected)
    assert checks.effective_rank(np.ones((4, 3))) == 1.0


def test_what_the_records_do_not_tell_is_not_stated() -> None:
    provenance = SimpleNamespace(voxels=10, trials=20)
    session = SimpleNamespace(bundle=SimpleNamespace(provenance=provenance), pack=tiny_pack())
    entries = cred_nf(cast(Any, session), [{"supported": "1"}, {"supported": "0"}])
    assert len({entry.number for entry in entries}) == 24
    assert sum(entry.says == NOT_STATED for entry in entries) == 18
    assert any("2 decoded trials, of which 1" in entry.says for entry in entries)


def test_a_folder_that_is_no_calibrated_session_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected a session folder with settings\.toml"):
        read_calibration(tmp_path, None)
    (tmp_path / "settings.toml").write_text("[decode]\npack = 'tiny'\n")
    with pytest.raises(CalibrationError, match=r"expected a calibration of its own \(bundle\)"):
        read_calibration(tmp_path, None)


def test_the_report_says_what_of_a_supported_trial_is_not_supported() -> None:
    assert _support({"supported": "0", "refused": "the response looks like rest", "unknown": "n/a"}) == (
        "no: the response looks like rest"
    )
    assert _support({"supported": "1", "unknown": "n/a"}) == "yes"
    assert _support({"supported": "1", "unknown": "category,spatial"}) == "yes, but not its category and spatial"
    assert _support({"supported": "1"}) == "yes"  # of an earlier version
