"""Fits what a film encoder's heads read to a new participant's own parcels, by ridge regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.ridge import N_PENALTIES, Spectrum, penalties
from rtdecode.decode.score.film_rows import standardized
from rtdecode.errors import CalibrationError
from rtdecode.evaluate.recorded_films import read_films
from rtdecode.packs.film_prediction import open_prediction, read_trunk
from rtdecode.packs.film_readout import FilmReadout, ReadoutTable
from rtdecode.session.entries import bad_runs
from rtdecode.statistics import column_correlations

Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]
BLOCKS = 5
"""Stretches of which one is held out at a time."""
GAP_S = 15.0
"""Volumes so near to a stretch that is held out are not learned from: neighbours resemble each other."""
FEWEST_VOLUMES = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """A ridge regression of each parcel.

    Attributes
    ----------
    weights : array of shape (h, p), float64
    constant : array of shape (p,), float64
    held_out : array of shape (p,), float64
        Correlation over the stretches that were held out, whose penalty was chosen without them.
    penalties : array of shape (p,), float64
    """

    weights: Float64
    constant: Float64
    held_out: Float64
    penalties: Float64


def fit_readout(trunk: Float64, measured: Float64, run: Ints, time_s: Float64) -> Fitted:
    """Fit each parcel, and measure it on stretches of time that its fit had not seen.

    Parameters
    ----------
    trunk : array of shape (n, h)
        What the heads read of each volume.
    measured : array of shape (n, p)
        Parcels; they are standardised by run.
    run : array of shape (n,), int64
        Of each volume. Runs are held out whole where there are three or more, else stretches of them.
    time_s : array of shape (n,)
        Of each volume in its run, seconds.

    Raises
    ------
    CalibrationError
        There are too few volumes, or no parcel varies.
    """
    if len(trunk) < FEWEST_VOLUMES:
        raise CalibrationError(
            f"expected {FEWEST_VOLUMES} volumes of a film that was followed or more, got {len(trunk)}: show more of it"
        )
    targets: Float64 = np.zeros(measured.shape)
    for one in np.unique(run):
        targets[run == one] = standardized(measured[run == one])
    if not targets.any():
        raise CalibrationError("expected parcels that vary, got none: look at the mask and the label image")
    blocks = _blocks(run)
    kernel = trunk @ trunk.T
    predicted, centred = np.zeros(targets.shape), np.zeros(targets.shape)
    for block in np.unique(blocks):
        out = blocks == block
        rest = np.flatnonzero(_away(out, run, time_s))
        chosen = _choose(kernel, targets, rest, blocks, run, time_s)
        found = _predicted(kernel, targets, rest, np.flatnonzero(out))
        own = np.take_along_axis(found, chosen[None, None], 0)[0]
        # the mean of the others lies away from that of the stretch: over all stretches that alone correlates below 0
        predicted[out], centred[out] = own - own.mean(0), targets[out] - targets[out].mean(0)
    everyone = np.arange(len(trunk))
    chosen = _choose(kernel, targets, everyone, blocks, run, time_s)
    spectrum = Spectrum(_centred(kernel, everyone, everyone), targets)
    grid = penalties(spectrum)
    centre = trunk.mean(0)
    weights: Float64 = np.zeros((len(centre), len(chosen)))
    for place in np.unique(chosen):
        some = chosen == place
        weights[:, some] = (trunk - centre).T @ spectrum.dual(float(grid[place]))[:, some]
    return Fitted(
        weights=weights,
        constant=targets.mean(0) - centre @ weights,
        held_out=column_correlations(centred, predicted),
        penalties=grid[chosen],
    )


def fit_session(session: Path, films: Mapping[str, Path]) -> FilmReadout:
    """Fit a readout to the films that a session has shown.

    Parameters
    ----------
    session : Path
        Session folder.
    films : mapping of str to Path
        Prediction of each film by the name that it was announced with.

    Raises
    ------
    CalibrationError
        The films were not shown, or too few volumes of them are of use.
    BundleError
        A prediction cannot be used, or they are of different models.
    """
    predictions = {name: open_prediction(folder) for name, folder in films.items()}
    models = {one.about.sources.get("model", "") for one in predictions.values()}
    if len(models) != 1 or "" in models:
        raise CalibrationError(f"--film: expected predictions of one pack, got {', '.join(sorted(models)) or 'none'}")
    bad = bad_runs(session)
    shown = [one for one in read_films(session) if one.film in films and one.run not in bad]
    absent = [name for name in films if name not in {one.film for one in shown}]
    if absent:
        raise CalibrationError(f"{session}: expected that film {absent[0]!r} was shown and announced in it")
    about = next(iter(predictions.values())).about
    parcels = [name for name in about.parcels if all(name in one.parcels for one in shown)]
    if not parcels:
        raise CalibrationError(
            f"{session}: expected parcels that are both measured and predicted, got none: film.parcels names another "
            "label image than the predictions are of"
        )
    rows: list[Float64] = []
    measured: list[Float64] = []
    run: list[Ints] = []
    time_s: list[Float64] = []
    for one in shown:
        values, on = one.at_volumes(read_trunk(films[one.film]), predictions[one.film].about.t_r_s)
        columns = [one.parcels.index(name) for name in parcels]
        rows.append(np.asarray(values[on], np.float64))
        measured.append(np.asarray(one.measured[on][:, columns], np.float64))
        run.append(np.full(on.sum(), one.run))
        time_s.append(np.asarray(one.volumes[on] * one.t_r_s, np.float64))
    runs = np.concatenate(run)
    fitted = fit_readout(np.concatenate(rows), np.concatenate(measured), runs, np.concatenate(time_s))
    networks = dict(zip(about.parcels, about.networks, strict=False))
    table = ReadoutTable(
        participant=session.name.partition("_")[0].removeprefix("sub-"),
        session=session.name,
        model=models.pop(),
        films={name: one.identity for name, one in predictions.items()},
        parcels=parcels,
        networks=[networks[name] for name in parcels] if networks else [],
        volumes=len(runs),
        runs=len(np.unique(runs)),
    )
    return FilmReadout(
        about=table,
        weights=fitted.weights.astype(np.float32),
        constant=fitted.constant.astype(np.float32),
        held_out=fitted.held_out.astype(np.float32),
        penalties=fitted.penalties.astype(np.float32),
    )


def _blocks(run: Ints) -> Ints:
    """Return the number of each volume's stretch: its run or, where there are one or two, a part of it."""
    runs = np.unique(run)
    if len(runs) >= 3:
        return np.searchsorted(runs, run)
    parts = -(-BLOCKS // len(runs))
    made = np.zeros(len(run), np.int64)
    for place, one in enumerate(runs):
        own = np.flatnonzero(run == one)
        made[own] = place * parts + np.arange(len(own)) * parts // len(own)
    return made


def _away(out: NDArray[np.bool_], run: Ints, time_s: Float64) -> NDArray[np.bool_]:
    """Volumes that are neither held out nor near to one that is."""
    away = ~out
    for one in np.unique(run[out]):
        held = time_s[out & (run == one)]
        away &= (run != one) | (np.abs(time_s[:, None] - held).min(1) >= GAP_S)
    return np.asarray(away)


def _choose(kernel: Float64, targets: Float64, some: Ints, blocks: Ints, run: Ints, time_s: Float64) -> Ints:
    """Penalty of each parcel, as its place in the grid, by stretches that are held out of some volumes in turn."""
    error = np.zeros((N_PENALTIES, targets.shape[1]))
    inside = np.zeros(len(targets), bool)
    inside[some] = True
    for block in np.unique(blocks[some]):
        out = inside & (blocks == block)
        rest = np.flatnonzero(inside & _away(out, run, time_s))
        if len(rest) > 1:
            found = _predicted(kernel, targets, rest, np.flatnonzero(out))
            error += np.square(found - targets[out]).sum(1)
    return np.asarray(error.argmin(0))


def _predicted(kernel: Float64, targets: Float64, rest: Ints, out: Ints) -> Float64:
    """Return what each penalty of the grid predicts of other volumes (g, m, p)."""
    spectrum = Spectrum(_centred(kernel, rest, rest), targets[rest])
    return spectrum.predict(_centred(kernel, out, rest), penalties(spectrum))


def _centred(kernel: Float64, rows: Ints, rest: Ints) -> Float64:
    """Inner products of rows with the rest, all less the mean of the rest."""
    own = kernel[np.ix_(rest, rest)]
    mean = own.mean(0)
    some = kernel[np.ix_(rows, rest)]
    return np.asarray(some - some.mean(1, keepdims=True) - mean + mean.mean())
