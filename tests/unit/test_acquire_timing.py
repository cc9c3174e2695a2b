"""Slice times that only a protocol implies, against the orders that the vendors' manuals draw."""

from __future__ import annotations

import numpy as np
import pytest

from rtdecode.acquire import ge
from rtdecode.acquire.mosaic import implied_times


@pytest.mark.parametrize(
    ("mode", "n_slices", "turns"),
    [
        (b"0x1", 4, [0, 1, 2, 3]),
        (b"0x2", 4, [3, 2, 1, 0]),
        (b"0x4", 4, [2, 0, 3, 1]),
        (b"0x4", 5, [0, 3, 1, 4, 2]),
        (b"4", 3, [0, 2, 1]),
    ],
)
def test_siemens_orders(mode: bytes, n_slices: int, turns: list[int]) -> None:
    protocol = b"sSliceArray.lSize = 9\nsSliceArray.ucMode   = " + mode + b"\nlDelayTimeInTR = 400000\n"
    times = implied_times(protocol, 2.4, n_slices)
    np.testing.assert_allclose(times, np.array(turns) * 2.0 / n_slices)


@pytest.mark.parametrize(
    "protocol", [b"", b"sSliceArray.ucMode = 0x8\n", b"sSliceArray.ucMode = 0x1\nMultiBandFactor = 4\n"]
)
def test_siemens_without_a_known_order(protocol: bytes) -> None:
    assert implied_times(protocol, 2.0, 4) is None
    assert implied_times(b"sSliceArray.ucMode = 0x1\n", None, 4) is None


@pytest.mark.parametrize(
    ("n_slices", "bands", "interleaved", "new", "turns"),
    [
        (4, 1, False, False, [0, 1, 2, 3]),
        (5, 1, True, False, [0, 3, 1, 4, 2]),
        (4, 1, True, True, [0, 2, 1, 3]),
        (9, 3, True, False, [0, 2, 1]),
        (8, 2, True, False, [0, 3, 1, 4, 2]),  # an even number of excitations gets one more
        (12, 2, True, True, [0, 3, 1, 5, 2, 4]),  # or, later, another last one
        (7, 2, False, False, [0, 1, 2, 3, 4]),
    ],
)
def test_ge_orders(n_slices: int, bands: int, interleaved: bool, new: bool, turns: list[int]) -> None:
    times = ge._excitations(n_slices, bands, 3.0, interleaved, new)
    np.testing.assert_allclose(times, np.array(turns) * 3.0 / len(turns))


def test_ge_timer_tells_its_unit_by_the_repetition_time() -> None:
    seconds = np.array([0.0023, 0.7523, 0.1898, 0.9398])
    np.testing.assert_allclose(ge.by_timer(seconds, 1.5), seconds - 0.0023)
    tenths_of_ms = np.array([26308.0, 27018.0, 27728.0])
    np.testing.assert_allclose(ge.by_timer(tenths_of_ms, 0.25), [0, 0.071, 0.142])
    two_bands = np.array([0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(ge.by_timer(two_bands, 1.5), two_bands)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.4, 0.8], [0.0, 30_000.0, 60_000.0]])
def test_a_partial_ge_timer_tells_nothing(values: list[float]) -> None:
    assert ge.by_timer(np.array(values), 2.0) is None
