"""The stored values of every volume, kept losslessly in the session folder before they are used."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

import nibabel as nib
import numpy as np

from rtdecode.disk import bring_to_disk
from rtdecode.errors import JournalError
from rtdecode.records import Volume

HELD_BYTES = 2 << 30


class KeptVolumes:
    """Files ``run-01/vol-0000.nii`` and on. While the disk refuses them they are held in memory, in their order.

    Thread-safe: the journal writes what is held before each of its records, whichever thread appends them.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    problem : str or None
        Why the disk does not take volumes; None while it does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: deque[tuple[Path, bytes]] = deque()
        self._held_bytes = 0
        self._unsynced: deque[Path] = deque()  # written, but perhaps still in the cache
        self._lock = threading.RLock()
        self.problem: str | None = None

    def path(self, volume: Volume) -> Path:
        """Where a volume is kept."""
        return self._folder / f"run-{volume.stamp.run:02d}" / f"vol-{volume.stamp.volume:04d}.nii"

    def keep(self, volume: Volume) -> None:
        """Keep the stored values of a volume, as NIfTI.

        Raises
        ------
        JournalError
            The disk has refused volumes for so long that no more can be held.
        """
        content = _nifti(volume)
        with self._lock:
            if self._held_bytes + len(content) > HELD_BYTES:
                raise JournalError(f"{HELD_BYTES >> 30} GiB of volumes could not be written: {self.problem}")
            self._held.append((self.path(volume), content))
            self._held_bytes += len(content)
            self.write_held()

    def write_held(self) -> bool:
        """Write what was held; return whether nothing is left."""
        with self._lock:
            try:
                while self._held:
                    target, content = self._held[0]
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(content)
                    self._unsynced.append(target)
                    self._held.popleft()
                    self._held_bytes -= len(content)
            except OSError as error:
                self.problem = f"volumes cannot be kept: {error.strerror or error}"
            else:
                self.problem = None
            return not self._held

    def sync(self) -> None:
        """Bring to the disk what was written since the last time.

        Raises
        ------
        OSError
            The disk refuses.
        """
        folders = set()
        with self._lock:
            while self._unsynced:
                bring_to_disk(self._unsynced[0])
                folders.add(self._unsynced.popleft().parent)
        for folder in [*folders, *([self._folder] if folders else [])]:  # and the name of a new run's folder
            bring_to_disk(folder)


def _nifti(volume: Volume) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(volume.data.dtype)
    header.set_data_shape(volume.data.shape)
    header.set_sform(volume.affine, 1)
    header.set_zooms(np.linalg.norm(volume.affine[:3, :3], axis=0))
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"] = volume.slope, volume.intercept
    header["vox_offset"], header["magic"] = 352, b"n+1"
    binary: bytes = header.binaryblock
    return binary + bytes(4) + volume.data.tobytes(order="F")
