"""What must outlive a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def bring_to_disk(path: Path) -> None:
    """Bring the content of a file, or the names in a folder, to the disk.

    Raises
    ------
    OSError
        The disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
