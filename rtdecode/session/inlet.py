"""Where inputs enter: the journal and the volume lane hold them in the same order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict

from rtdecode.errors import ProtocolError
from rtdecode.records import Skipped, Volume
from rtdecode.session.lanes import VolumeLane
from rtdecode.session.past import Input
from rtdecode.session.recording import Recording
from rtdecode.session.run_state import Progress

CAPACITY = 64


class Inlet:
    """Takes volumes from the ingest thread and announcements from the publish thread.

    Parameters
    ----------
    recording : Recording

    Attributes
    ----------
    lane : VolumeLane
        What was taken in, in its order.
    taken : Progress
        How far the scan has come by what was taken in, whether or not it has been worked on.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._lock = threading.Lock()
        self._closed = False
        self._t_r_s = 0.0
        self.lane: VolumeLane[Input] = VolumeLane(CAPACITY)
        self.taken = Progress()

    def scanned(self, item: Volume | Skipped) -> None:
        """Keep what came from the scanner and hand it on; waits while the lane is full.

        Raises
        ------
        JournalError
            The disk has refused records for so long that no more can be held.
        """
        if isinstance(item, Volume):
            self._recording.keep(item)
        self.lane.wait_for_room()
        with self._lock:
            if isinstance(item, Volume):
                self._recording.arrival(item)
            else:
                self._recording.inputs.append("skipped", **asdict(item))
            self.lane.put(item)
            self._note(item)

    def _note(self, item: Volume | Skipped) -> None:
        run, index = (item.stamp.run, item.stamp.volume) if isinstance(item, Volume) else (item.run, item.volume)
        if index is None or run < (self.taken.run or 0):
            return
        if isinstance(item, Volume):
            self._t_r_s = item.t_r_s or self._t_r_s
        self.taken = Progress(closed=run - 1, run=run, volumes=index + 1, scanned_s=(index + 1) * self._t_r_s)

    def announced(self, kind: str, item: Input, judge: Callable[[Progress], None] = lambda _: None) -> None:
        """Journal what a client asked for and hand it on.

        Parameters
        ----------
        kind : str
            Of the journal's record.
        item : Input
        judge : callable
            Given `taken`; may raise `ProtocolError`. Nothing is taken in between.

        Raises
        ------
        ProtocolError
            The session is ending.
        JournalError
            As of `scanned`.
        """
        with self._lock:
            if self._closed:
                raise ProtocolError("the session is ending: nothing more is taken")
            judge(self.taken)
            self._recording.inputs.append(kind, **asdict(item))
            self.lane.put(item)

    def close(self) -> None:
        """Take nothing more; what is in the lane can still be worked on."""
        with self._lock:
            self._closed = True
            self.lane.close()
