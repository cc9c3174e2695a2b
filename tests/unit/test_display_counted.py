"""Counts in bounded memory, against counts in memory without bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdecode.publish.display import counted
from rtdecode.publish.display.counted import Counted


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y"])), max_size=60))
def test_a_name_counts_once_as_what_it_was_told_last(told: list[tuple[str, str]]) -> None:
    counts, all_of_them = Counted(), dict(told)
    for place, (name, kind) in enumerate(told):
        assert counts.put(name, kind) == (name not in dict(told[:place]))
    assert {kind: n for kind, n in counts.totals.items() if n} == {
        kind: list(all_of_them.values()).count(kind) for kind in set(all_of_them.values())
    }


def test_of_many_names_the_latest_are_remembered_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "REMEMBERED", 3)
    counts = Counted()
    for name in "abcd":
        counts.put(name, "x")
    assert not counts.put("d", "y")
    assert counts.put("a", "y")  # forgotten by now
    assert counts.totals == {"x": 3, "y": 2}
