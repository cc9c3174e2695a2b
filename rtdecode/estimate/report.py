"""What an operator looks at after a run: tSNR map, spikes, and plots of motion, series and design."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.derivatives import figure_path, file_path, write_image
from rtdecode.estimate.quality import is_spike
from rtdecode.records import RegisteredVolume
from rtdecode.statistics import RunningMoments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CARPET_VOXELS = 2000
_CARPET_PERCENT = 3.0
_OUTLINE = 0.4  # of the brightest percentile: where the outline of a head is drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DesignMatrix:
    """The model of a run at its end: `columns` of shape (t, p), their `names`, and the volume index of each row."""

    columns: NDArray[np.float64]
    names: tuple[str, ...]
    rows: NDArray[np.int64]


class RunReport:
    """Collects the volumes of a run; keeps every n-th voxel of the series and sums over time of all."""

    def __init__(self) -> None:
        self._figures: list[tuple[float, ...]] = []
        self._carpet: list[NDArray[np.float32]] = []
        self._moments = RunningMoments()
        self._step = 1

    def add(self, volume: RegisteredVolume) -> None:
        """Take a volume; its masked values are not kept."""
        values = volume.masked.astype(np.float64)
        if not self._carpet:
            self._step = max(1, len(values) // _CARPET_VOXELS)
        figures = (volume.stamp.volume, volume.fd_mm, volume.dvars, volume.fit)
        self._figures.append((*figures, *volume.motion.tolist(), float(volume.censored)))
        self._carpet.append(volume.masked[:: self._step].copy())
        self._moments.add(values)

    def store(self, path: Path, design: DesignMatrix | None) -> None:
        """Keep the run and its model in an NPZ file until there is time to `write`; `stored` opens it again."""
        model: dict[str, Any] = {}
        if design is not None:
            model = {"columns": design.columns, "names": np.array(design.names), "rows": design.rows}
        np.savez(
            path,
            figures=np.array(self._figures),
            carpet=np.array(self._carpet),
            mean=self._moments.mean,
            sum_square=self._moments.sum_square,
            step=self._step,
            **model,
        )

    @classmethod
    def stored(cls, path: Path) -> tuple[RunReport, DesignMatrix | None]:
        """Return what `store` has kept."""
        report, design = cls(), None
        with np.load(path) as kept:
            report._figures = [tuple(row) for row in kept["figures"].tolist()]
            report._carpet = list(kept["carpet"])
            report._moments = RunningMoments(len(report._figures), kept["mean"], kept["sum_square"])
            report._step = int(kept["step"])
            if "columns" in kept:
                names = tuple(kept["names"].tolist())
                design = DesignMatrix(columns=kept["columns"], names=names, rows=kept["rows"])
        return report, design

    def tsnr(self) -> NDArray[np.float32]:
        """Return mean / standard deviation over time per voxel of the mask, shape (v,); 0 where nothing varies."""
        deviation = self._moments.deviation
        return np.where(deviation > 0, self._moments.mean / np.where(deviation > 0, deviation, 1.0), 0.0).astype(
            np.float32
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures of the run, for a JSON file."""
        index, fd_mm, dvars, fit, *_, censored = np.array(self._figures).T
        spikes = is_spike(dvars)
        return {
            "VolumesUsed": int((censored == 0).sum()),
            "VolumesCensored": int((censored > 0).sum()),
            "MeanFramewiseDisplacement_mm": float(fd_mm.mean()),
            "MaxFramewiseDisplacement_mm": float(fd_mm.max()),
            "MedianDVARS_percent": float(np.median(dvars[1:])) if len(dvars) > 1 else None,
            "Spikes": index[spikes].astype(int).tolist(),
            "MedianTSNR": float(np.median(self.tsnr())),
            "LowestFit": float(fit.min()),
        }

    def write(
        self,
        stem: Path,
        mask: NDArray[np.bool_],
        affine: NDArray[np.float64],
        censor_fd_mm: float,
        design: DesignMatrix | None,
    ) -> None:
        """Write the tSNR map and the plots.

        Parameters
        ----------
        stem : Path
            Folder and beginning of the file names.
        mask : array of shape (i, j, k), bool
        affine : array of shape (4, 4), float64
        censor_fd_mm : float
            Drawn as a line.
        design : DesignMatrix or None
        """
        if not self._figures:
            return
        tsnr = np.zeros(mask.shape, np.float32)
        tsnr[mask] = self.tsnr()
        write_image(file_path(stem, "stat-tsnr_boldmap.nii.gz"), tsnr, affine)
        plots = {
            "tsnr": (_tsnr_plot(tsnr), f"tSNR, median {np.median(self.tsnr()):.0f}"),
            "motion": (self._motion_plot(censor_fd_mm), self._motion_title(censor_fd_mm)),
            "carpet": (self._carpet_plot(), "signal change"),
        }
        if design is not None:
            plots["design"] = _design_plot(design), "model"
        for name, (figure, what) in plots.items():
            figure.suptitle(f"{run_title(stem.name)}: {what}")
            _save(figure, figure_path(stem, name))

    def _motion_title(self, censor_fd_mm: float) -> str:
        left_out = sum(figures[-1] > 0 for figures in self._figures)
        return f"motion, {left_out} of {len(self._figures)} volumes out, limit {censor_fd_mm:g} mm"

    def _motion_plot(self, censor_fd_mm: float) -> Figure:
        index, fd_mm, _, _, *motion, _ = np.array(self._figures).T
        figure = _figure(9, 6, {"left": 0.09, "right": 0.83, "bottom": 0.08, "top": 0.93, "hspace": 0.08})
        shifts, turns, displacement = figure.subplots(3, 1, sharex=True)
        for column, name in enumerate("xyz"):
            shifts.plot(index, motion[column], label=name)
            turns.plot(index, np.rad2deg(motion[3 + column]), label=name)
        shifts.set_ylabel("translation (mm)")
        turns.set_ylabel("rotation (degrees)")
        displacement.plot(index, fd_mm, color="black", label="FD")
        displacement.axhline(censor_fd_mm, color="red", linestyle="--", label=f"limit {censor_fd_mm:g} mm")
        for plot in (shifts, turns, displacement):  # beside the traces, not over them
            plot.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        displacement.set_ylabel("FD (mm)")
        displacement.set_xlabel("volume")
        return figure

    def _carpet_plot(self) -> Figure:
        index, _, values, *_ = np.array(self._figures).T
        series = np.array(self._carpet, np.float64).T
        level = series.mean(1, keepdims=True)
        percent = by_global_signal(100 * (series - level) / np.where(level > 0, level, 1.0))
        figure = _figure(9, 6, {"left": 0.11, "right": 0.98, "bottom": 0.08, "top": 0.93, "hspace": 0.05})
        dvars, carpet = figure.subplots(2, 1, sharex=True, height_ratios=[1, 4])
        dvars.plot(index, values, color="black")
        dvars.set_ylabel("DVARS (%)")
        extent = (index[0] - 0.5, index[-1] + 0.5, float(len(percent)), 0.0)
        carpet.imshow(percent, aspect="auto", cmap="gray", vmin=-_CARPET_PERCENT, vmax=_CARPET_PERCENT, extent=extent)
        carpet.set_ylabel(
            f"every {self._step}. voxel, +-{_CARPET_PERCENT:g} %\nby correlation with their mean, highest on top"
        )
        carpet.set_xlabel("volume")
        return figure


def by_global_signal(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Order the rows of a carpet by their correlation with the mean of all, highest first.

    Parameters
    ----------
    series : array of shape (v, t), float64
    """
    deviation = series - series.mean(1, keepdims=True)
    norm = np.linalg.norm(deviation, axis=1)
    alike = deviation @ deviation.mean(0) / np.where(norm > 0, norm, 1.0)
    return series[np.argsort(-alike, kind="stable")]


def run_title(stem: str) -> str:
    """Return the run that the beginning of a BIDS file name tells: ``sub-01_run-02`` is participant 01, run 02.

    A name without such parts is its own title.
    """
    words = {"sub": "participant", "ses": "session", "run": "run", "task": "task"}
    parts = [part.partition("-") for part in stem.split("_")]
    told = [f"{words.get(key, key)} {value}" for key, dash, value in parts if dash and value]
    return ", ".join(told) or stem


def overlay(reference: NDArray[np.float32], moved: NDArray[np.float32], target: Path, title: str = "") -> None:
    """Draw the outline of an aligned volume over the reference, in three directions, for the operator to check.

    Parameters
    ----------
    reference, moved : array of shape (i, j, k), float32
        In the same space.
    target : Path
        PNG file.
    title : str
    """
    figure = _figure(9, 3.4)
    figure.suptitle(title)
    for axis, plot in enumerate(figure.subplots(1, 3)):
        place = reference.shape[axis] // 2
        plot.imshow(reference.take(place, axis).T, cmap="gray", origin="lower")
        outline = moved.take(place, axis).T
        plot.contour(outline, levels=[_OUTLINE * np.percentile(moved, 98)], colors="red", linewidths=0.8)
        plot.set_axis_off()
    _save(figure, target)


def place_of_head(registered: RegisteredVolume) -> str:
    """Return the title of the `overlay` of the first volume of a visit over the reference of an earlier one."""
    millimetres, degrees = np.abs(registered.motion[:3]).max(), np.degrees(np.abs(registered.motion[3:]).max())
    return (
        f"first volume (red outline) over the calibration's reference: correlation {registered.fit:.3f}, "
        f"moved {millimetres:.1f} mm, turned {degrees:.1f} degrees"
    )


def _tsnr_plot(tsnr: NDArray[np.float32]) -> Figure:
    shown = np.unique(np.linspace(0, tsnr.shape[2] - 1, min(12, tsnr.shape[2])).round().astype(int))
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    height = 2.4 * rows + 0.6
    margins = {"left": 0.01, "right": 0.88, "bottom": 0.1 / height, "top": 1 - 0.7 / height, "wspace": 0.03}
    figure = _figure(9, height, {**margins, "hspace": 0.12})
    plots = np.ravel(figure.subplots(rows, columns, squeeze=False))
    top = float(np.percentile(tsnr[tsnr > 0], 98)) if (tsnr > 0).any() else 1.0
    for plot in plots:
        plot.set_axis_off()
    for plot, k in zip(plots, shown, strict=False):
        picture = plot.imshow(tsnr[:, :, k].T, origin="lower", vmin=0, vmax=top)
        plot.set_title(f"slice {k}", fontsize=8)
    figure.colorbar(picture, cax=figure.add_axes((0.9, margins["bottom"], 0.02, 1 - 0.8 / height)), label="tSNR")
    return figure


def _design_plot(design: DesignMatrix) -> Figure:
    largest = np.abs(design.columns).max(0)
    figure = _figure(max(6, 0.16 * len(design.names)), 6)
    plot = figure.subplots()
    plot.imshow(design.columns / np.where(largest > 0, largest, 1.0), aspect="auto", cmap="gray", interpolation="none")
    plot.set_xticks(range(len(design.names)), design.names, rotation=90, fontsize=6)
    ticks = np.unique(np.linspace(0, len(design.rows) - 1, 8).astype(int))
    plot.set_yticks(ticks, design.rows[ticks].tolist())
    plot.set_ylabel("volume")
    return figure


def _figure(width: float, height: float, margins: dict[str, float] | None = None) -> Figure:
    """Begin a figure with the margins given, or with some that are found, which takes longer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=None if margins else "constrained")
    if margins:
        figure.subplots_adjust(**margins)
    return figure


def _save(figure: Figure, target: Path) -> None:
    figure.savefig(target, dpi=100)


def column_names(drift: int, motion: int, trials: Sequence[str], total: int) -> tuple[str, ...]:
    """Name the columns of `glm.single_trial_design`: level, drift, motion, trials and, if any is left, their sum."""
    names = ["level", *(f"drift {k + 1}" for k in range(drift)), *(f"motion {k + 1}" for k in range(motion)), *trials]
    return tuple(names + ["sum of trials"] * (total - len(names)))
