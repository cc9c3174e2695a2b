"""What every `Clock` does."""

from __future__ import annotations

from rtdecode.clock import Clock

_YEAR_2001_S = 1e9


def check_clock(clock: Clock, *, tolerance_s: float = 0.5) -> None:
    """Check a clock.

    Parameters
    ----------
    clock : Clock
        Sleeps for less than a tenth of a second.
    tolerance_s : float
        By how much a sleep may be longer than asked for.

    Raises
    ------
    AssertionError
    """
    before, wall = clock.monotonic(), clock.wall()
    assert wall > _YEAR_2001_S, f"wall: expected seconds since 1970, got {wall}"
    for asked in (0.0, -1.0, 0.02, 0.05):
        began = clock.monotonic()
        clock.sleep(asked)
        slept = clock.monotonic() - began
        least = max(asked, 0.0) - 1e-3
        assert least <= slept <= max(asked, 0.0) + tolerance_s, f"sleep({asked}): {slept} s passed on monotonic"
    passed, on_wall = clock.monotonic() - before, clock.wall() - wall
    assert abs(passed - on_wall) <= tolerance_s, f"{passed} s passed on monotonic, {on_wall} s on wall"
