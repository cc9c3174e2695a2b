"""Trials of an earlier visit, brought to how the same voxels answer today: what a few new trials are added to.

Between visits the level of a voxel changes, how strongly it varies, and what it answers to. A few trials tell the first
two, whatever they show; the maps of the earlier visit follow as more come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from calibration.adapter_fit import Trials
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import CalibrationError

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Brought = Callable[[Float32], Float32]

_TRIALS_OF_MEAN = 10.0
_TRIALS_OF_SCALE = 20.0
"""The earlier mean and variance of a voxel count as much as so many new trials."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EarlierVisit:
    """A calibration of the same participant that is over.

    Attributes
    ----------
    session : str
    mask : Path
        NIfTI file; the order of its voxels is that of the betas.
    candidates : Candidates
        Pictures that were shown then.
    trials : Trials
        Those that were fitted; `shown` counts `candidates`.
    """

    session: str
    mask: Path
    candidates: Candidates
    trials: Trials

    def check(self, mask: Path) -> None:
        """Check that betas of today are of the same voxels.

        Parameters
        ----------
        mask : Path
            Mask of today's session.

        Raises
        ------
        CalibrationError
            They are not, or a mask cannot be read.
        """
        (then, there), (now, here) = _read(self.mask), _read(mask)
        if not np.array_equal(then, now) or not np.allclose(there, here, atol=1e-3):
            raise CalibrationError(
                f"{mask}: expected the {np.count_nonzero(then)} voxels of the earlier session {self.session}, got "
                f"{np.count_nonzero(now)} that are not the same; name the bundle of that session as decode.bundle"
            )

    def before(self, present: Trials, places: Ints, *, leave_out: Literal["trial", "run"], seed: int) -> Trials:
        """Put its trials before those of today; folds are still those of today.

        Parameters
        ----------
        present : Trials
        places : ndarray of shape (m,), int64
            Of the earlier pictures among those of both visits, which `shown` counts; see `of_both`.
        leave_out : {"trial", "run"}
            What is held out together.
        seed : int
            Of draws.
        """
        then = self.trials
        certain, doubting = _to_today(then.betas, present.betas, seed)
        shown = places[then.shown]
        down = 1 + max(int(runs.max()) for runs in (then.run, then.null_run, then.rest_run) if len(runs))
        run = then.run - down
        return replace(
            present,
            betas=np.concatenate([certain(then.betas), present.betas]),
            null_betas=np.concatenate([doubting(then.null_betas), present.null_betas]),
            null_places=np.concatenate([then.null_places, len(then.betas) + present.null_places]),
            null_run=np.concatenate([then.null_run - down, present.null_run]),
            rest_betas=np.concatenate([doubting(then.rest_betas), present.rest_betas]),
            rest_run=np.concatenate([then.rest_run - down, present.rest_run]),
            run=np.concatenate([run, present.run]),
            shown=np.concatenate([shown, present.shown]),
            together=np.concatenate([run if leave_out == "run" else shown, present.together]),
            earlier=len(then.betas),
            earlier_session=self.session,
        )


def of_both(present: Candidates, earlier: EarlierVisit) -> tuple[Candidates, Ints]:
    """Return the pictures of today and after them those of an earlier visit, and the places of the latter.

    A picture that is another one than that of the same name today takes the name of its session along.

    Raises
    ------
    CalibrationError
        Categories differ.
    """
    then = earlier.candidates
    if present.categories != then.categories:
        raise CalibrationError(
            f"expected the categories of the earlier session, {', '.join(then.categories)}; got "
            f"{', '.join(present.categories)}"
        )
    names, new, places = list(present.names), [], []
    for row, name in enumerate(then.names):
        now = present.index(name)
        if now is not None and not np.allclose(present.tokens[now], then.tokens[row], atol=1e-3):
            name = f"{name} of session {earlier.session}"
            now = present.index(name)
        if now is None:
            now = len(names)
            names.append(name)
            new.append(row)
        places.append(now)
    both = replace(
        present,
        names=tuple(names),
        tokens=np.concatenate([present.tokens, then.tokens[new]]),
        category=np.concatenate([present.category, then.category[new]]),
    )
    return both, np.array(places, np.int64)


def only(candidates: Candidates, shown: Ints) -> tuple[Candidates, Ints]:
    """Return the pictures that were shown, and what `shown` (n,) is among these."""
    rows, places = np.unique(shown, return_inverse=True)
    return (
        replace(
            candidates,
            names=tuple(candidates.names[row] for row in rows),
            tokens=candidates.tokens[rows],
            category=candidates.category[rows],
        ),
        places.astype(np.int64),
    )


def _to_today(then: Float32, now: Float32, seed: int) -> tuple[Brought, Brought]:
    """Bring betas of the earlier visit to mean and variance of today, as far as a few trials tell these.

    Returns
    -------
    certain : callable
        For trials to learn from.
    doubting : callable
        For responses that later ones are compared with. Each is brought over by a mean of today's trials drawn anew
        (bootstrap): what today's mean is wrong by lies in every later response, and so it must in these.
    """
    n, mean, deviation = len(now), then.mean(0), then.std(0)
    squares = np.square(now - now.mean(0)).sum(0)
    variance = (_TRIALS_OF_SCALE * np.square(deviation) + squares) / (_TRIALS_OF_SCALE + n - 1)
    factor = np.sqrt(variance) / np.where(deviation > 0, deviation, 1)
    rng = np.random.default_rng(seed)

    def brought(betas: Float32, share: NDArray[np.floating[Any]]) -> Float32:
        moved = mean + n / (n + _TRIALS_OF_MEAN) * (share.astype(np.float32) @ now - mean)
        return np.asarray(moved + factor * (betas - mean), np.float32)

    def doubting(betas: Float32) -> Float32:
        return brought(betas, rng.multinomial(n, np.full(n, 1 / n), size=len(betas)) / n)

    return lambda betas: brought(betas, np.full(n, 1 / n)), doubting


def _read(mask: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Read which voxels are in a mask, and its affine."""
    try:
        image: Any = nib.load(mask)
        return np.asarray(image.dataobj) > 0, image.affine
    except (OSError, ImageFileError, ValueError) as error:
        raise CalibrationError(f"{mask}: expected a mask: {error}") from None
