"""What every `Source` does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire.source import Source
from rtdecode.clock import Clock
from rtdecode.records import Volume

_RUNS, _VOLUMES = (1, 2), 4


def check_source(
    source: Source, scan: Callable[[int, int], NDArray[np.generic]], clock: Clock, *, settle_s: float = 1.0
) -> None:
    """Check a source that nothing has been taken from.

    Parameters
    ----------
    source : Source
    scan : callable
        Lets the scanner give a volume of a run (run from 1, volume from 0) and returns its stored values.
    clock : Clock
        The source's own.
    settle_s : float
        How long the source may take to see a volume.

    Raises
    ------
    AssertionError
    """
    before = clock.monotonic()
    assert source.poll() == [], "expected nothing before the first volume"
    source.wait(0.05)
    assert clock.monotonic() >= before, "wait turned the clock back"
    assert source.poll() == [], "expected nothing before the first volume"
    assert source.problem is None, f"problem: expected none, got {source.problem}"
    looks = source.looks
    sent: dict[tuple[int, int], NDArray[np.generic]] = {}
    seen: list[Volume] = []
    for run in _RUNS:
        for index in range(_VOLUMES):
            sent[run, index] = scan(run, index)
            if index % 2:
                clock.sleep(settle_s)
                for arrival in source.poll():
                    assert isinstance(arrival.item, Volume), f"expected volumes alone, got {arrival.item}"
                    assert arrival.item.stamp.received_mono_s <= clock.monotonic(), "a volume came before it was there"
                    seen.append(arrival.item)
    assert source.poll() == [], "a volume came twice"
    assert source.looks >= looks + len(sent), f"looks: expected {len(sent)} more or above, got {source.looks - looks}"
    order = [(volume.stamp.run, volume.stamp.volume) for volume in seen]
    assert order == list(sent), f"expected each volume once, in order, got {order}"
    assert len({volume.stamp.session for volume in seen}) == 1, "expected the stamps of one session"
    for volume in seen:
        stamp = volume.stamp
        assert stamp.trial is None, f"trial: expected none, got {stamp.trial}"
        np.testing.assert_array_equal(volume.data, sent[stamp.run, stamp.volume], f"values of {stamp}")
        for name, array in (("data", volume.data), ("affine", volume.affine)):
            assert not array.flags.writeable, f"{name}: expected a read-only array"
    with source:
        source.close()
    source.close()
