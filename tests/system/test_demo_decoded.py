"""What a demo decodes of a simulated participant, and that nothing is decoded where labels are shuffled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demos import check_identified, check_whole, finished, start_demo

pytestmark = pytest.mark.system


@pytest.mark.parametrize("seed", [1, 2])
def test_shown_pictures_are_identified_above_chance(tmp_path: Path, seed: int) -> None:
    check_identified(finished(start_demo(tmp_path, "--seed", str(seed), "--port", "0"), tmp_path))


def test_shuffled_labels_come_out_at_chance(tmp_path: Path) -> None:
    summary = finished(start_demo(tmp_path, "--seed", "1", "--shuffle-labels", "--port", "0"), tmp_path)
    check_whole(summary, decoded=80, volumes=928)
    low, high = summary["accuracy_interval"]
    assert low <= summary["chance"] <= high
    assert summary["identification"]["permutation_p"] > 0.01
    evidence = [trial["evidence"] for trial in summary["trials"]]
    assert sum(evidence) / len(evidence) < 1.5 * summary["chance"]
