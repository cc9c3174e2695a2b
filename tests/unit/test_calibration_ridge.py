"""The dual ridge against scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from calibration.ridge import Spectrum, centred


def data(seed: int, n: int, v: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, v)) + rng.standard_normal(v)
    return x, x @ rng.standard_normal((v, k)) / np.sqrt(v) + rng.standard_normal((n, k)) + 3.0


def test_dual_coefficients_are_the_primal_solution() -> None:
    x, y = data(4, 15, 30, 2)
    spectrum = Spectrum(centred(x @ x.T), y)
    fitted = Ridge(alpha=7.0).fit(x, y)
    weights = (x - x.mean(0)).T @ spectrum.dual(7.0)
    np.testing.assert_allclose(weights, fitted.coef_.T, atol=1e-9)
    others, _ = data(5, 4, 30, 2)
    cross = (others - x.mean(0)) @ (x - x.mean(0)).T
    predicted = spectrum.predict(cross, np.array([1.0, 7.0]))
    assert predicted.shape == (2, 4, 2)
    np.testing.assert_allclose(predicted[1], fitted.predict(others), atol=1e-9)
