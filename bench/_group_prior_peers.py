"""Other decoders of pictures: the calibration that came before the encoding model, and peers of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeCV

from calibration import regression
from calibration.targets import make_targets

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


def earlier_calibration(
    responses: Float32, tokens: Float32, test: Float32, test_tokens: Float32, groups: Sequence[slice]
) -> Float64:
    """Scores (m, m) of a ridge from responses to tokens whose held-out errors say how much each component counts."""
    n = len(responses)
    targets = make_targets(tokens.reshape(n, -1, 1), groups, most=max(8, n // 8))
    choice, held_out = regression.choose(responses, targets, np.arange(n), regression.sizes_for(responses.shape[1]))
    gain = regression.gains(held_out, targets.components)
    predicted = regression.fit(responses, targets, choice)(test) * gain
    held_out = held_out * gain
    wanted = (test_tokens - targets.token_mean) @ (targets.basis / np.square(targets.basis).sum(1, keepdims=True)).T
    power = np.square(targets.components).sum(0)
    slope = np.maximum((held_out * targets.components).sum(0) / power, 0)
    live = np.flatnonzero((slope > 0) & (held_out.std(0) > 0))
    if len(live) == 0:
        return np.zeros((len(test), len(test_tokens)))
    errors = (held_out - slope * targets.components)[:, live]
    scale = np.sqrt(np.square(errors).mean(0))
    spread, _ = ledoit_wolf(errors / scale, assume_centered=True)
    precision = np.linalg.inv(spread) / np.outer(scale, scale)
    wanted = (slope * wanted)[:, live]
    fit = predicted[:, live] @ precision @ wanted.T
    return np.asarray(fit - 0.5 * np.einsum("mk,kl,ml->m", wanted, precision, wanted))


def shrinkage_lda(responses: Float32, category: Ints, test: Float32, test_category: Ints) -> Float64:
    """Scores (m, m): each picture has that of its category. Fitted in the span of the trials."""
    mean, deviation = responses.mean(0), responses.std(0)
    standard, other = (responses - mean) / deviation, (test - mean) / deviation
    _, strengths, axes = np.linalg.svd(standard, full_matrices=False)
    axes = axes[strengths > 1e-6 * strengths[0]].T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a category was shown but once
        head = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(standard @ axes, category)
    logs = head.predict_log_proba(other @ axes)
    scores = np.full((len(test), max(int(test_category.max()), int(category.max())) + 1), logs.min() - 1)
    scores[:, head.classes_] = logs
    return np.asarray(scores[:, test_category])


def ridge_cv(responses: Float32, components: Float64, test: Float32, test_components: Float64) -> Float64:
    """Scores (m, m): cosines between components that a ridge predicts and those of each picture."""
    mean, deviation = responses.mean(0), responses.std(0)
    head = RidgeCV(np.logspace(0, 7, 15)).fit((responses - mean) / deviation, components)
    predicted = head.predict((test - mean) / deviation) - components.mean(0)
    unit = test_components / np.linalg.norm(test_components, axis=1, keepdims=True)
    return np.asarray(predicted @ unit.T)
