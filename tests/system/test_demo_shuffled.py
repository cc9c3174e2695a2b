"""Nothing is decoded by a demo whose labels are shuffled; `test_demo` holds what one with the right labels decodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demos import check_whole, finished, start_demo

pytestmark = pytest.mark.system


def test_shuffled_labels_come_out_at_chance(tmp_path: Path) -> None:
    summary = finished(start_demo(tmp_path, "--seed", "1", "--shuffle-labels", "--port", "0"), tmp_path)
    check_whole(summary, decoded=80, volumes=928)
    low, high = summary["accuracy_interval"]
    assert low <= summary["chance"] <= high
    assert summary["identification"]["permutation_p"] > 0.01
    evidence = [trial["evidence"] for trial in summary["trials"]]
    assert sum(evidence) / len(evidence) < 1.5 * summary["chance"]
