"""From files in the scanner's export folder to volumes in index order.

``source`` says what the rest of the line sees, ``watcher`` is the real thing: ``intake`` reads files as they become
whole (``readers`` one file each, ``stack`` puts slices together), ``series`` leaves out what is no BOLD series,
``runs`` gives volumes their places, ``order`` holds them back until their turn.
"""

from rtdecode.acquire.source import Arrival, Source
from rtdecode.acquire.watcher import FolderWatcher

__all__ = ["Arrival", "FolderWatcher", "Source"]
