"""What all tests share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Numbers are held to the last digit, and sums differ with the number of threads. Children inherit this.
for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# Machines differ in speed, not in truth; and a change is judged by the same examples each time.
settings.register_profile(
    "rtdecode",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("rtdecode")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole sessions first, then files of many tests: pytest-xdist takes files in order, the short ones last."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.parent.name != "system", -tests[item.path]))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and real scanner files, which is not part of the project."""
    folder = Path(os.environ.get("RTDECODE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data" / "MANIFEST.json").is_file():
        message = f"no shared data at {folder}; set RTDECODE_SHARED to where they are"
        if os.environ.get("RTDECODE_REQUIRE_SHARED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


class FakeClock:
    """A clock that moves only when somebody sleeps, and calls back while it does."""

    def __init__(self, start: float = 1_000.0) -> None:
        self.now = start
        self.on_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)
        self.on_sleep()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
