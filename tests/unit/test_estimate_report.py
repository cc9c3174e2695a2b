"""What is left of a run for the operator: map, spikes, figures and plots."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rtdecode.estimate.quality import is_spike
from rtdecode.estimate.report import DesignMatrix, RunReport, by_global_signal, column_names, overlay, run_title
from rtdecode.records import RegisteredVolume, Stamp

MASK = np.zeros((8, 9, 5), bool)
MASK[1:7, 2:8, 1:4] = True


def volumes(length: int = 30) -> tuple[np.ndarray, list[RegisteredVolume]]:
    rng = np.random.default_rng(0)
    series = (rng.uniform(500, 900, MASK.sum()) + rng.standard_normal((length, MASK.sum()))).astype(np.float32)
    made = [
        RegisteredVolume(
            stamp=Stamp(session="s", run=1, volume=2 * i, received_s=0, received_mono_s=0),
            masked=series[i],
            matrix=np.eye(4),
            motion=rng.standard_normal(6) / 100,
            fd_mm=2.5 if i == 20 else 0.1 * i / length,
            dvars=0.0 if i == 0 else 9.0 if i == 20 else 1 + 0.01 * (i % 7),
            tsnr=1.0,
            fit=0.99 - 0.001 * i,
            censored=i == 20,
        )
        for i in range(length)
    ]
    return series, made


def test_map_and_figures(tmp_path: Path) -> None:
    series, made = volumes()
    report = RunReport()
    for volume in made:
        report.add(volume)
    np.testing.assert_allclose(report.tsnr(), series.mean(0) / series.std(0, ddof=1), rtol=1e-4)
    summary = report.summary()
    assert summary["Spikes"] == [40]
    assert summary["VolumesCensored"] == 1
    assert summary["VolumesUsed"] == 29
    assert summary["MaxFramewiseDisplacement_mm"] == 2.5
    assert summary["LowestFit"] == pytest.approx(0.961)
    names = column_names(2, 1, ["a", "b"], 7)
    assert names == ("level", "drift 1", "drift 2", "motion 1", "a", "b", "sum of trials")
    design = DesignMatrix(columns=np.eye(30)[:, :7], names=names, rows=np.arange(30))
    affine = np.diag([2.0, 2, 3, 1])
    report.store(tmp_path / "kept.npz", design)
    report, kept = RunReport.stored(tmp_path / "kept.npz")
    assert kept is not None
    assert kept.names == names
    report.write(tmp_path / "sub-01_run-01", MASK, affine, 2.0, kept)
    image = nib.load(tmp_path / "sub-01_run-01_stat-tsnr_boldmap.nii.gz")
    np.testing.assert_allclose(image.get_fdata()[MASK], report.tsnr(), rtol=1e-6)
    assert (image.get_fdata()[~MASK] == 0).all()
    for name in ("motion", "carpet", "tsnr", "design"):
        picture = np.asarray(Image.open(tmp_path / "figures" / f"sub-01_run-01_desc-{name}plot_bold.png").convert("L"))
        assert min(picture.shape) > 300
        assert picture.std() > 5  # something is drawn


def test_plots_tell_whose_they_are_and_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr("rtdecode.estimate.report._save", lambda figure, target: drawn.update({target.name: figure}))
    report = RunReport()
    for volume in volumes()[1]:
        report.add(volume)
    design = DesignMatrix(columns=np.eye(30)[:, :2], names=("a", "b"), rows=np.arange(30))
    stem = tmp_path / "sub-07_ses-02_task-look_run-03"
    report.write(stem, MASK, np.eye(4), 2.0, design)
    titles = {name.split("_")[-2]: figure.get_suptitle() for name, figure in drawn.items()}
    assert titles == {
        "desc-tsnrplot": f"participant 07, session 02, task look, run 03: tSNR, median {np.median(report.tsnr()):.0f}",
        "desc-motionplot": "participant 07, session 02, task look, run 03: motion, 1 of 30 volumes out, limit 2 mm",
        "desc-carpetplot": "participant 07, session 02, task look, run 03: signal change",
        "desc-designplot": "participant 07, session 02, task look, run 03: model",
    }
    motion = drawn[f"{stem.name}_desc-motionplot_bold.png"]
    motion.canvas.draw()
    for axes in motion.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    assert "limit 2 mm" in [text.get_text() for text in motion.axes[2].get_legend().get_texts()]
    assert "by correlation with their mean" in drawn[f"{stem.name}_desc-carpetplot_bold.png"].axes[1].get_ylabel()


def test_the_carpet_is_sorted_by_correlation_with_the_mean_of_all() -> None:
    rng = np.random.default_rng(2)
    common = rng.standard_normal(80)
    series = np.concatenate([rng.uniform(-2, 2, (40, 1)) * common + rng.standard_normal((40, 80)), np.ones((1, 80))])
    ordered = by_global_signal(series)
    right = [np.corrcoef(row, series.mean(0))[0, 1] if row.std() > 0 else 0.0 for row in ordered]
    assert np.all(np.diff(right) <= 1e-12)
    np.testing.assert_array_equal(np.sort(ordered, axis=0), np.sort(series, axis=0))


def test_a_name_without_entities_is_its_own_title() -> None:
    assert run_title("bold") == "bold"
    assert run_title("sub-01_run-02") == "participant 01, run 02"


def test_an_empty_run_leaves_nothing(tmp_path: Path) -> None:
    RunReport().write(tmp_path / "x", MASK, np.eye(4), 2.0, None)
    assert list(tmp_path.iterdir()) == []


def test_overlay_draws_the_outline_in_red(tmp_path: Path) -> None:
    distance = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0)
    ball = np.where(distance < 6, 1000.0, 0.0)
    overlay(ball.astype(np.float32), ball.astype(np.float32), tmp_path / "overlay.png", "aligned")
    picture = np.asarray(Image.open(tmp_path / "overlay.png").convert("RGB")).astype(int)
    red = (picture[..., 0] > 200) & (picture[..., 1] < 80) & (picture[..., 2] < 80)
    assert red.sum() > 100


def test_spikes_stand_out_from_the_rest() -> None:
    rng = np.random.default_rng(1)
    dvars = np.concatenate([[0.0], rng.normal(1.0, 0.05, 200)])
    dvars[[50, 120]] = 2.0
    assert {50, 120} <= set(np.flatnonzero(is_spike(dvars)).tolist())
    assert is_spike(dvars).sum() < 6
    assert not is_spike(np.array([0.0, 1.0])).any()
    assert not is_spike(np.ones(10)).any()
