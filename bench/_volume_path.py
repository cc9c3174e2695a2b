"""Volumes through the estimator on a thread of their own, as a daemon has it, while the process does something else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from _phantom import Phantom

from rtdecode.estimate import Estimator
from rtdecode.records import Stamp, TrialEvent, Volume
from rtdecode.settings import EstimateSettings
from rtdecode.simulate.protocol import Protocol

PERIOD_S = 0.5


class VolumePath:
    """A run that goes on and on: a moving head of 64 x 64 x 36 voxels, a trial every 8 s, a volume every half second.

    Parameters
    ----------
    published : callable
        Is given the number of each volume once its betas are up to date; its time counts.
    """

    def __init__(self, published: Callable[[int], None]) -> None:
        self._published = published
        protocol = Protocol()
        phantom = Phantom(protocol, 80.0, 7)
        moved = [np.eye(4), *(phantom.motion(np.zeros(3)) for _ in range(7))]
        self._drawn = [phantom.render(one).astype(np.uint16) for one in moved]
        self._protocol = protocol
        self._estimator = Estimator(EstimateSettings(censor_fd_mm=1e3, confounds="6"), "bench")
        self._estimator.warm_up()
        self._estimator.start_run(1, protocol.t_r_s)
        for onset_s in range(8, 2000, 8):
            self._estimator.add_event(TrialEvent(run=1, trial=f"at-{onset_s}", onset_s=float(onset_s), duration_s=3.0))
        self._volumes = 0
        self._step()  # the first makes mask and reference

    @contextmanager
    def going_on(self) -> Iterator[list[tuple[float, float]]]:
        """Take volumes in the meantime; yield milliseconds of each, by the clock and of the thread's processor time."""
        over, took = threading.Event(), list[tuple[float, float]]()

        def volumes() -> None:
            due = time.monotonic()
            while not over.wait(max(0.0, due - time.monotonic())):
                took.append(self._step())
                due += PERIOD_S

        thread = threading.Thread(target=volumes)
        thread.start()
        try:
            yield took
        finally:
            over.set()
            thread.join()

    def _step(self) -> tuple[float, float]:
        began, computed = time.perf_counter(), time.thread_time()
        stamp = Stamp(session="bench", run=1, volume=self._volumes, received_s=0.0, received_mono_s=0.0)
        self._estimator.step(
            Volume(
                stamp=stamp,
                data=self._drawn[self._volumes % len(self._drawn)],
                affine=self._protocol.affine,
                t_r_s=self._protocol.t_r_s,
                slice_times_s=None,
                series_uid="1",
                instance=self._volumes + 1,
                path="",
            )
        )
        self._published(self._volumes)
        self._volumes += 1
        return 1e3 * (time.perf_counter() - began), 1e3 * (time.thread_time() - computed)
