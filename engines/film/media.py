"""Pictures and sound of a film through PyAV: two pictures a second in their order, and all of the sound at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.families.encoding.film_windows import FRAME_HZ
from rtdecode.errors import SettingsError

SOUND_HZ = 16_000


class Media(Protocol):
    """A film.

    Attributes
    ----------
    duration_s : float
        Seconds.
    """

    duration_s: float

    def sound(self) -> NDArray[np.float32] | None:
        """Mono samples at 16 kHz in -1..1; None where the film has no sound. Two hours are 460 MB."""
        ...

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """Yield picture i, (h, w, 3), as it is on at i / 2 seconds."""
        ...


class FilmFile:
    """A `Media` file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    SettingsError
        It cannot be read, or has no pictures.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as container:
            if not container.streams.video:
                raise SettingsError([f"{path}: expected a film with pictures, got none"])
            stream = container.streams.video[0]
            length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1_000_000
        self.duration_s = float(length)
        if not self.duration_s > 0:
            raise SettingsError([f"{path}: expected a film that tells its length, got {self.duration_s} s"])

    def sound(self) -> NDArray[np.float32] | None:
        """See `Media.sound`."""
        import av

        with self._open() as container:
            if not container.streams.audio:
                return None
            to_mono = av.AudioResampler(format="flt", layout="mono", rate=SOUND_HZ)
            pieces = [
                piece.to_ndarray().ravel()
                for frame in container.decode(container.streams.audio[0])
                for piece in to_mono.resample(frame)
            ]
            pieces += [piece.to_ndarray().ravel() for piece in to_mono.resample(None)]
        return np.concatenate(pieces).astype(np.float32) if pieces else None

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """See `Media.pictures`."""
        with self._open() as container:
            number, shown = 0, None
            for frame in container.decode(container.streams.video[0]):
                time_s = float(frame.pts * frame.time_base)
                while shown is not None and number / FRAME_HZ < time_s - 1e-6:
                    yield shown
                    number += 1
                shown = np.asarray(frame.to_ndarray(format="rgb24"))
            while shown is not None and number / FRAME_HZ < self.duration_s:
                yield shown
                number += 1

    def _open(self) -> Any:
        try:
            import av
        except ImportError as error:
            raise SettingsError([f"a film is read by PyAV ({error}): pip install '.[film]'"]) from None
        try:
            return av.open(str(self._path))
        except (OSError, ValueError) as error:
            raise SettingsError([f"{self._path}: expected a film that FFmpeg reads: {error}"]) from None
