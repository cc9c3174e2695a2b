"""From the trials of a calibration to the ridge adapter, with what is said of each trial without its fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import regression
from calibration.encoding.encoder import Encoder, PriorOf, fit_encoder
from calibration.encoding.maps import MapPrior
from calibration.learned_prior import LearnedPrior
from calibration.scaling import Scaling
from calibration.supported import supported
from calibration.targets import Targets, make_targets
from rtdecode.decode.score.adapter import Adapter
from rtdecode.decode.score.candidates import Candidates

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """What a calibration has collected.

    Attributes
    ----------
    betas : ndarray of shape (n, v), float32
        Percent signal change, in order of time.
    null_betas : ndarray of shape (m, v), float32
        Of trials that showed a content-free picture.
    null_places : ndarray of shape (m,), int64
        Trial that each of these came before.
    null_run : ndarray of shape (m,), int64
    rest_betas : ndarray of shape (r, v), float32
        Of stretches of rest.
    rest_run : ndarray of shape (r,), int64
    run : ndarray of shape (n,), int64
    shown : ndarray of shape (n,), int64
        Candidate that each trial showed.
    together : ndarray of shape (n,), int64
        Trials with the same number are held out together.
    parts : list of ndarray of int64
        Trials of each fold.
    prior : LearnedPrior or None
        What earlier participants taught.
    places_mm : ndarray of shape (v, 3) or None
        Of the voxels in the common space; needed with a prior.
    earlier : int
        How many of the trials, the first ones, are of an earlier visit.
    earlier_session : str
        Its session; empty without one.
    """

    betas: Float32
    null_betas: Float32
    null_places: Ints
    null_run: Ints
    rest_betas: Float32
    rest_run: Ints
    run: Ints
    shown: Ints
    together: Ints
    parts: list[Ints]
    prior: LearnedPrior | None = None
    places_mm: Float64 | None = None
    earlier: int = 0
    earlier_session: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedAdapter:
    """An adapter, and what adapters that were learned without a trial's fold say of it.

    Attributes
    ----------
    adapter : Adapter
    gain : ndarray of shape (k,)
        Factor, 0 to 1, of each component.
    held_out : ndarray of shape (n, k)
        Components of each trial, predicted without its fold.
    """

    adapter: Adapter
    gain: Float64
    held_out: Float64

    def decoded(self) -> Float32:
        """Flattened tokens (n, m) of each trial, predicted without its fold."""
        return self.tokens(self.held_out)

    def tokens(self, components: NDArray[np.floating[Any]]) -> Float32:
        """Flattened tokens (n, m) of components (n, k)."""
        return np.asarray(components @ self.adapter.basis + self.adapter.token_mean, np.float32)


def fit_adapter(trials: Trials, candidates: Candidates) -> FittedAdapter:
    """Fit the adapter alone, as `fit_participant` does.

    Raises
    ------
    CalibrationError
        As `fit_participant`.
    """
    scaling = Scaling(trials.betas)
    responses = scaling(trials.betas)
    targets, priors = known(trials, candidates, responses, scaling)
    encoder = fit_encoder(responses, targets.components, priors, parts=trials.parts, shown=trials.shown)
    return fit_adapter_to(targets, responses, encoder, trials.parts, scaling)


def known(
    trials: Trials, candidates: Candidates, responses: Float32, scaling: Scaling
) -> tuple[Targets, list[PriorOf]]:
    """Describe the pictures in as many components as the trials support, and say what is known of maps beforehand."""
    tokens = candidates.tokens[trials.shown]
    if trials.prior is None or trials.places_mm is None:

        def described(count: int) -> tuple[Float64, list[PriorOf]]:
            targets = make_targets(tokens, candidates.groups, most=count)
            return targets.components, [_prior(targets)]

        count = supported(responses, described, trials.parts, trials.shown)
        targets = make_targets(tokens, candidates.groups, most=count)
        return targets, [_prior(targets)]
    return trials.prior.targets(tokens), trials.prior.priors(trials.places_mm[scaling.voxels])


def _prior(targets: Targets) -> Callable[[Ints], MapPrior]:
    """Let maps follow each token group alike, and its components as far as these vary."""
    varying = [block for block in targets.blocks if block.stop > block.start]
    share = np.concatenate([targets.variance[block] / targets.variance[block].sum() for block in varying])
    covariance = np.diag(share / len(varying))
    return lambda _: MapPrior(covariance=covariance)


def fit_adapter_to(
    targets: Targets, responses: Float32, encoder: Encoder, parts: Sequence[Ints], scaling: Scaling
) -> FittedAdapter:
    """Make an adapter of what the encoding model expects of the picture, with held-out gains."""
    held_out = np.empty_like(targets.components)
    for part, held in zip(parts, encoder.held, strict=False):  # the folds come first
        own = responses[np.ix_(part, held.voxels)] - held.inverse.mean
        held_out[part] = own @ held.inverse.estimator().T
    gain = regression.gains(held_out, targets.components)
    wanted = targets.components - targets.components.mean(0)
    total = np.square(wanted).sum(0)
    left = np.square(wanted - gain * held_out).sum(0)
    r2 = np.clip(1 - np.divide(left, total, out=np.ones(len(total)), where=total > 0), 0, 1)
    whole = encoder.whole
    estimator = whole.inverse.estimator().astype(np.float64) * gain[:, None]

    def share(block: slice) -> float:
        variance = targets.variance[block]
        return float((r2[block] * variance).sum() / variance.sum()) if len(variance) else 0.0

    def single(values: NDArray[np.floating]) -> Float32:
        return np.ascontiguousarray(values, dtype=np.float32)

    adapter = Adapter(
        voxels=scaling.voxels[whole.voxels].astype(np.int64),
        mean=single(scaling.mean[whole.voxels]),
        scale=single(scaling.scale[whole.voxels]),
        weights=single(estimator.T),
        intercept=single(-estimator @ whole.inverse.mean),
        basis=single(targets.basis),
        token_mean=single(targets.token_mean),
        r2=single(r2),
        group_r2=np.array([share(block) for block in targets.blocks], dtype=np.float32),
    )
    return FittedAdapter(adapter=adapter, gain=gain, held_out=gain * held_out)
