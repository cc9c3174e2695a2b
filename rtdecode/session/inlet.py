"""Where inputs enter: the journal and the volume lane hold them in the same order."""

from __future__ import annotations

import threading
from dataclasses import asdict

from rtdecode.errors import ProtocolError
from rtdecode.records import Skipped, Volume
from rtdecode.session.lanes import VolumeLane
from rtdecode.session.past import Input
from rtdecode.session.recording import Recording

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
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._lock = threading.Lock()
        self._closed = False
        self.lane: VolumeLane[Input] = VolumeLane(CAPACITY)

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

    def announced(self, kind: str, item: Input) -> None:
        """Journal what a client asked for and hand it on.

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
            self._recording.inputs.append(kind, **asdict(item))
            self.lane.put(item)

    def close(self) -> None:
        """Take nothing more; what is in the lane can still be worked on."""
        with self._lock:
            self._closed = True
            self.lane.close()
