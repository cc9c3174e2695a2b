from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rtdecode.acquire.latest import MOST_SERIES, Latest


@given(st.lists(st.tuples(st.integers(0, 2 * MOST_SERIES), st.integers()), max_size=200))
def test_the_series_that_came_last_are_remembered(told: list[tuple[int, int]]) -> None:
    known: Latest[int, int] = Latest()
    expected: list[tuple[int, int]] = []
    for series, value in told:
        known[series] = value
        if any(series == other for other, _ in expected):
            expected = [(other, value if series == other else old) for other, old in expected]
        else:
            expected = [*expected, (series, value)][-MOST_SERIES:]
        assert list(known.items()) == expected
