"""Responses without a picture in them: what evidence is compared with.

Which ones there are decides how often a right trial is supported. Best are responses to content-free pictures, shown
during calibration. Else a picture shown twice tells what differs without it: half the difference of its responses,
scaled to the noise of one. Else two pictures of a category do, whose difference still holds what tells these apart: no
false alarms then, but few right trials pass. All are scored by models that were learned without the trials or, for null
trials among others, without their neighbours, whose noise they share: a model is fitted to the noise of what it has
seen. Null trials in a run of their own share no noise with what was learned, so the final model scores them, exactly as
it will score later responses. Models of fewer trials score what holds no picture higher: their values are brought to
the scale of the final model by what each gives to draws from its own noise.

Where one of two looks at a picture was a lapse, their difference still holds half of it, and a few such pairs would be
all of the tail that decides. So what a difference says of the very picture that was repeated is replaced by a draw of
noise, as strong as it is there in most pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibration.encoding.encoder import Encoder, Inverted

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

Kind = Literal["null trials", "repeats", "differences"]
_Pair = tuple[int, int, int]
"""Fold, and two of its trials."""
DRAWS = 1000
"""Responses that are drawn from a model's noise to compare its scale with another's."""
SUPPORT_LEVEL = 0.05
"""p-value up to which content counts as there."""
FEWEST = round(1 / SUPPORT_LEVEL) - 1
"""Fewer null trials, or pairs of repeats, tell too little: their lowest p-value is above `SUPPORT_LEVEL`."""
_QUARTILES = (0.25, 0.5, 0.75)
_MEDIAN_OF_NORMAL = 0.6745
"""Median size of a standard normal number."""
_APART = 2
"""Neighbouring trials share noise: only those further apart make a pair."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nulls:
    """Responses without a picture, each with the model that is to judge it.

    Attributes
    ----------
    kind : str
    groups : tuple of (int or None, ndarray of shape (m, v), float32)
        Place in `Encoder.held` of the model that judges, None for the model of all trials, and standardised responses.
    independent : int
        How many of these are independent of each other: a difference counts with both signs, and a trial may be in two.
    """

    kind: Kind
    groups: tuple[tuple[int | None, Float32], ...]
    independent: int


def without_both(parts: Sequence[Ints], shown: Ints) -> list[Ints]:
    """Return pairs of neighbouring folds to hold out together, where no fold has a picture twice but two have.

    So it is where each run shows every stimulus once: repeats are then in two runs.
    """
    if len(parts) < 3 or any(_pairs(part[shown[part] == i]) for part in parts for i in np.unique(shown[part])):
        return []
    rings = [np.concatenate([part, parts[(place + 1) % len(parts)]]) for place, part in enumerate(parts)]
    return [ring for ring in rings if len(np.unique(shown[ring])) < len(ring)]


def find_nulls(
    encoder: Encoder,
    responses: Float32,
    components: Float64,
    null_responses: Float32,
    null_places: Ints,
    null_alone: NDArray[np.bool_],
    shown: Ints,
    category: Ints,
    rng: np.random.Generator,
) -> Nulls:
    """Take the best nulls that a calibration offers.

    Parameters
    ----------
    encoder : Encoder
    responses : ndarray of shape (n, v), float32
        Of the calibration trials in order of time, standardised.
    components : ndarray of shape (n, k)
        Of the picture of each trial.
    null_responses : ndarray of shape (m, v), float32
        Of trials that showed a content-free picture, standardised in the same way.
    null_places : ndarray of shape (m,), int64
        Calibration trial that each of them came before.
    null_alone : ndarray of shape (m,), bool
        Whether no picture was shown in the same run.
    shown, category : ndarray of shape (n,), int64
        Picture and category of each trial.
    rng : numpy.random.Generator
        Of what takes the place of repeated pictures.
    """
    if len(null_responses) >= FEWEST:
        fold_of = np.full(len(responses), -1)
        for fold in reversed(range(len(encoder.parts))):
            fold_of[encoder.parts[fold]] = fold
        folds = fold_of[np.minimum(null_places, len(responses) - 1)]
        groups: list[tuple[int | None, Float32]] = []
        if null_alone.any():
            groups.append((None, null_responses[null_alone]))
        for fold in np.unique(folds[~null_alone]):
            groups.append((int(fold), null_responses[(folds == fold) & ~null_alone]))
        return Nulls(kind="null trials", groups=tuple(groups), independent=len(null_responses))
    pairs = _pairs_in_folds(encoder, shown)
    if len(pairs) >= FEWEST:
        pictures = [components[first] for _, first, _ in pairs]
        halves = _picture_replaced(encoder, _halves(responses, pairs), pairs, pictures, rng)
        return _both_signs("repeats", encoder, halves, pairs)
    pairs = _pairs_in_folds(encoder, category)
    return _both_signs("differences", encoder, _halves(responses, pairs), pairs)


def brought_over(values: Float64, here: Float64, there: Float64) -> Float64:
    """Bring values to another scale, given draws on either: their medians and quartiles become equal."""
    low, middle, high = np.quantile(here, _QUARTILES)
    new_low, new_middle, new_high = np.quantile(there, _QUARTILES)
    if not high > low:
        return values
    return np.asarray(new_middle + (values - middle) * (new_high - new_low) / (high - low))


def _pairs_in_folds(encoder: Encoder, same: Ints) -> list[_Pair]:
    """Return pairs of trials that have the same number."""
    return [
        (fold, first, second)
        for fold, part in enumerate(encoder.parts)
        for value in np.unique(same[part])
        for first, second in _pairs(part[same[part] == value])
    ]


def _halves(responses: Float32, pairs: Sequence[_Pair]) -> list[Float32]:
    """Half the difference of each pair, scaled to the noise of one response."""
    return [(responses[first] - responses[second]) / np.float32(np.sqrt(2)) for _, first, second in pairs]


def _picture_replaced(
    encoder: Encoder,
    halves: Sequence[Float32],
    pairs: Sequence[_Pair],
    pictures: Sequence[Float64],
    rng: np.random.Generator,
) -> list[Float32]:
    """Replace what half differences (v,) say of their own pictures (k,) by noise."""
    along = [
        encoder.held[fold].noise_along(picture, len(half))
        for half, (fold, _, _), picture in zip(halves, pairs, pictures, strict=True)
    ]
    said = np.array([half @ weights for half, (weights, _) in zip(halves, along, strict=True)])
    usual = np.median(np.abs(said)) / _MEDIAN_OF_NORMAL
    changes = usual * rng.standard_normal(len(said)) - said
    return [half + np.float32(by) * pattern for half, by, (_, pattern) in zip(halves, changes, along, strict=True)]


def _both_signs(kind: Kind, encoder: Encoder, halves: Sequence[Float32], pairs: Sequence[_Pair]) -> Nulls:
    """Put half differences on either side of the average response."""
    by_fold: dict[int | None, list[Float32]] = {}
    for half, (fold, _, _) in zip(halves, pairs, strict=True):
        average = _average_response(encoder.held[fold], len(half))
        by_fold.setdefault(fold, []).extend([average + half, average - half])
    used = {trial for _, *both in pairs for trial in both}
    groups = tuple((fold, np.stack(rows)) for fold, rows in by_fold.items())
    return Nulls(kind=kind, groups=groups, independent=len(used) // 2)


def _pairs(trials: Ints) -> list[tuple[int, int]]:
    """Pair trials that are far enough apart, each but once."""
    left = sorted(trials.tolist())
    pairs = []
    while len(left) > 1:
        first = left.pop(0)
        partner = next((trial for trial in left if trial - first > _APART), None)
        if partner is not None:
            left.remove(partner)
            pairs.append((first, partner))
    return pairs


def _average_response(held: Inverted, n_voxels: int) -> Float32:
    """Response (v,) to the average picture, as a model that was learned without some trials has it."""
    out = np.zeros(n_voxels, np.float32)
    out[held.voxels] = held.inverse.mean
    return out
