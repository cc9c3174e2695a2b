"""Puts slices that came in files of their own together to volumes, in whatever order they come."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire import ge, geometry, timing
from rtdecode.acquire.stored import Identity, StoredSlice, StoredVolume, differing
from rtdecode.errors import SurplusSlice, VolumeError

MAX_OPEN_BYTES = 2**30

Key = tuple[str, int, int | None, str, float | None]


@dataclass(slots=True)
class Partial:
    """A volume that lacks slices.

    Attributes
    ----------
    identity : Identity
        Of the volume, by its first slice.
    path : Path
        File of the latest slice.
    slices : dict of int to StoredSlice
        By place along the normal, in hundredths of a millimetre.
    """

    identity: Identity
    path: Path
    slices: dict[int, StoredSlice] = field(default_factory=dict)

    @property
    def expected(self) -> int | None:
        """Slices of the whole volume, if any slice tells."""
        return next(iter(self.slices.values())).n_slices


class Stacker:
    """Collects slices until their volume is whole."""

    def __init__(self) -> None:
        self._open: dict[Key, Partial] = {}
        self._closed: set[Key] = set()
        self._learned: dict[str, int] = {}
        self._held = 0

    @property
    def partial(self) -> dict[Key, Partial]:
        """Volumes that lack slices, oldest first."""
        return dict(self._open)

    def add(self, path: Path, stored: StoredSlice) -> StoredVolume | None:
        """Take a slice; return its volume if that is whole now.

        Raises
        ------
        SurplusSlice
            If the slice is there already, or its volume was closed.
        VolumeError
            If the slice cannot belong to its volume, or its volume turns out unusable.
        """
        identity = stored.identity
        key = identity.part
        if key in self._closed:
            raise SurplusSlice(path, "slice", "one of an open volume", f"one of volume {key[1]}, which is closed")
        if self._held + stored.data.nbytes > MAX_OPEN_BYTES:
            raise VolumeError(path, "slice", f"at most {MAX_OPEN_BYTES} bytes of incomplete volumes", "more")
        partial = self._open.get(key)
        if partial is None:
            partial = self._open[key] = Partial(identity, path)
        place = round(float(stored.position @ geometry.normal(stored.orientation)) / 0.01)
        if any(near in partial.slices for near in (place - 1, place, place + 1)):
            raise SurplusSlice(path, "slice", "one at each position of a volume", f"another of volume {key[1]}")
        first = next(iter(partial.slices.values()), stored)
        same = first.data.shape == stored.data.shape and np.allclose(first.orientation, stored.orientation, atol=1e-3)
        if not same:
            raise VolumeError(path, "slice", f"{first.data.shape} and the orientation of its volume", stored.data.shape)
        partial.slices[place] = stored
        partial.path = path
        self._held += stored.data.nbytes
        wanted = stored.n_slices or self._learned.get(identity.series_uid)
        return self.finish(key) if len(partial.slices) == wanted else None

    def finish(self, key: Key) -> StoredVolume:
        """Close a volume and return it.

        Raises
        ------
        VolumeError
            If slices are missing.
        """
        partial = self._close(key)
        ordered = [stored for _, stored in sorted(partial.slices.items())]
        wanted = partial.expected or self._learned.get(key[0])
        if wanted is not None and len(ordered) != wanted:
            raise VolumeError(partial.path, "incomplete volume", f"{wanted} slices", len(ordered))
        volume = _stack(partial.path, ordered)
        self._learned[key[0]] = len(ordered)
        return volume

    def drop(self, key: Key) -> None:
        """Forget a volume, if it is open; its slices are surplus from now on."""
        self._closed.add(key)
        if key in self._open:
            self._close(key)

    def _close(self, key: Key) -> Partial:
        self._closed.add(key)
        partial = self._open.pop(key)
        self._held -= sum(stored.data.nbytes for stored in partial.slices.values())
        return partial


def _stack(path: Path, ordered: list[StoredSlice]) -> StoredVolume:
    first = min(ordered, key=lambda stored: stored.number)
    lowest = ordered[0]
    positions = np.array([stored.position for stored in ordered])
    geometry.places(path, positions, lowest.orientation)
    step = geometry.step(path, positions, lowest.orientation, lowest.between_mm)
    data: NDArray[Any] = np.empty((*lowest.data.shape, len(ordered)), lowest.data.dtype)
    for k, stored in enumerate(ordered):
        data[:, :, k] = stored.data
    times = _slice_times(ordered)
    known = timing.unwrapped([stored.acquired_s for stored in ordered if stored.acquired_s is not None])
    return StoredVolume(
        identity=dataclasses.replace(first.identity, uid=f"{first.identity.uid}#volume"),
        origin=first.origin,
        data=data,
        slope=first.slope,
        intercept=first.intercept,
        scales=differing([(stored.slope, stored.intercept) for stored in ordered]),
        affine=geometry.affine(path, lowest.orientation, lowest.spacing_mm, step, lowest.position),
        t_r_s=first.t_r_s,
        slice_times_s=times,
        acquired_s=float(known.min()) if len(known) == len(ordered) else None,
        zero_tail=0,
        unknown=first.unknown,
    )


def _slice_times(ordered: list[StoredSlice]) -> NDArray[np.float64] | None:
    """Take the times of the protocol, else of a timer, else the acquisition times of the slices where they differ."""
    protocol = ordered[0].protocol_times_s
    if protocol is not None and protocol.size == len(ordered):
        turn = np.argsort(np.argsort([stored.number for stored in ordered], kind="stable"), kind="stable")
        found: NDArray[np.float64] = protocol[turn]
        return found
    t_r_s = ordered[0].t_r_s
    timers = [stored.timer for stored in ordered if stored.timer is not None]
    if t_r_s is not None and len(timers) == len(ordered):
        return ge.by_timer(np.array(timers), t_r_s)
    times = [stored.acquired_s for stored in ordered if stored.acquired_s is not None]
    if len(times) != len(ordered) or max(times) == min(times):
        return None
    return timing.since_first(times)
