"""Reads the files of the export as they become whole: nothing of runs here.

What content decides is not waited for. A file that lacks something, or ends in zeros that nothing explains, is looked
at again as long as it changes, and given up when it has not for as long as a gap is waited for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rtdecode.acquire import folder, readers, stack
from rtdecode.acquire.series import Selection
from rtdecode.acquire.stored import Identity, Reading, StoredSlice, StoredVolume, ends_blank
from rtdecode.errors import IncompleteFile, SurplusSlice, VolumeError

MOST_FILES = 64
"""Files of one look."""
_BLANK_MARGIN = 10
_WHOLE = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finding:
    """What a file came to.

    Attributes
    ----------
    path : Path
    stored : StoredVolume or None
        A whole volume; else `reason` says why there is none.
    reason : str
    identity : Identity or None
        Of the volume that is lost with the file, where it tells.
    chosen : bool
        The file is left out by choice: nothing is wrong with it, and it belongs to no run.
    """

    path: Path
    stored: StoredVolume | None = None
    reason: str = ""
    identity: Identity | None = None
    chosen: bool = False


class Intake:
    """Reads each file until it is dealt with, never again after.

    Parameters
    ----------
    files : Readers
    selection : Selection
        What it refuses is told of once a series.
    gap_timeout_s : float
        How long a file that does not change is waited for.
    """

    def __init__(self, files: readers.Readers, selection: Selection, gap_timeout_s: float) -> None:
        self._readers = files
        self._selection = selection
        self._gap_timeout_s = gap_timeout_s
        self._stacker = stack.Stacker()
        self._partial: dict[stack.Key, folder.Unfinished] = {}
        self._growing: dict[str, folder.Growing] = {}
        self._peeked: dict[str, Identity | None] = {}
        self._blank: dict[tuple[str, int], int] = {}
        self._settled: set[str] = set()
        self._unfinished: dict[str, folder.Unfinished] = {}
        self._lost: list[Finding] = []

    def pending(self, names: list[str]) -> list[str]:
        """Return the files of the folder that are to be read: incomplete ones last, else by series and name."""
        wanted = [name for name in names if self._wanted(name)]
        self._unfinished = {name: self._unfinished[name] for name in wanted if name in self._unfinished}
        began = self._began([name for name in wanted if name not in self._unfinished])
        return sorted(wanted, key=lambda name: (name in self._unfinished, began.get(name, 0.0), folder.natural(name)))

    def _began(self, new: list[str]) -> dict[str, float]:
        """Return when the series of each file began, where more wait than one look takes, and all of them tell."""
        if len(new) <= MOST_FILES:
            return {}
        self._peeked = {
            name: self._peeked[name] if name in self._peeked else self._readers.peek(Path(name)) for name in new
        }
        known = {name: identity.series_uid for name, identity in self._peeked.items() if identity is not None}
        began = first_began(identity for identity in self._peeked.values() if identity is not None)
        return {name: began[uid] for name, uid in known.items() if uid in began}

    def is_new(self, name: str) -> bool:
        """Whether a pending file has not been looked at yet."""
        return name not in self._unfinished

    def begun(self) -> list[Identity]:
        """Say which volumes the files are that are not whole yet, as far as they tell."""
        found = [self._readers.identify(path) for path in map(Path, self._unfinished)]
        return [identity for identity in found if identity is not None]

    def look(self, names: list[str], now_s: float) -> list[Finding]:
        """Read files; return what is whole, in order of series and volume, after what is lost."""
        lost = self._lost = []
        whole: list[Finding] = []
        for name in names:
            path = Path(name)
            try:
                with readers.seam(path):
                    whole.extend(Finding(path=path, stored=stored) for stored in self._read(path, now_s))
            except FileNotFoundError:
                self._unfinished.pop(name, None)
            except (IncompleteFile, OSError) as error:
                lost.extend(self._postpone(path, error, now_s))
            except SurplusSlice as error:
                self._settle(path)
                lost.append(Finding(path=path, reason=f"surplus: {error}"))
            except VolumeError as error:
                if ends_blank(path):  # allocated first, perhaps: what is wrong may be what is not written yet
                    lost.extend(self._postpone(path, error, now_s))
                else:
                    lost.extend(self._reject(path, f"unreadable: {error}"))
        for finding in self._expired(now_s):
            (lost if finding.stored is None else whole).append(finding)
        return lost + self._sorted(whole)

    def _sorted(self, whole: list[Finding]) -> list[Finding]:
        """Return volumes in order: series by when they were acquired where all tell, else by number."""
        out = []
        for finding in whole:
            assert finding.stored is not None
            stored = self._readers.placed(finding.stored)
            if stored.identity.echo == finding.stored.identity.echo or not self._left_out(finding.path, stored):
                out.append((finding, stored))
        began = first_began(stored.identity for _, stored in out)
        out.sort(key=lambda pair: (began.get(pair[1].identity.series_uid, 0.0), *pair[1].identity.order))
        return [dataclasses.replace(finding, stored=stored) for finding, stored in out]

    def _wanted(self, name: str) -> bool:
        grown = self._growing.get(name)
        return name not in self._settled and (grown is None or grown.state != readers.state(Path(name)))

    def _settle(self, path: Path) -> None:
        self._unfinished.pop(str(path), None)
        self._growing.pop(str(path), None)
        self._settled.add(str(path))

    def _read(self, path: Path, now_s: float) -> list[StoredVolume]:
        """Read a file and return what is whole now; settles the file unless it may bring more."""
        grown = self._growing.get(str(path))
        looked_at = readers.state(path)
        reading = self._readers.read(path, grown.taken if grown else 0)
        taken, out = 0, []
        for stored in reading.volumes:
            if not self._left_out(path, stored):
                if not self._zeros_explained(path, stored, now_s):
                    if not reading.growing:
                        raise _zeros(path, stored.zero_tail)
                    break
                out.append(self._noted(stored))
            taken += 1
        for piece in reading.slices:
            if not self._left_out(path, piece):
                out.extend(self._stack(path, piece, now_s))
        if reading.growing:
            self._grow(path, looked_at, taken, reading, now_s)
        else:
            self._settle(path)
        return out

    def _left_out(self, path: Path, stored: StoredVolume | StoredSlice) -> bool:
        """Whether the selection refuses a volume or slice; tells of it once a series."""
        why = self._selection.refusal(stored.identity, stored.origin)
        if why is not None and self._selection.is_news(stored.identity):
            self._lost.append(Finding(path=path, reason=why, chosen=True))
        return why is not None

    def _grow(self, path: Path, looked_at: tuple[int, int], taken: int, reading: Reading, now_s: float) -> None:
        """Remember how far a growing file has been read, and when to look at it again."""
        grown = self._growing.setdefault(str(path), folder.Growing(None, 0))
        grown.taken += taken
        waiting = taken < len(reading.volumes)
        grown.state = None if taken or waiting else looked_at
        if waiting:
            self._watch(path, looked_at, now_s)
        else:
            self._unfinished.pop(str(path), None)

    def _watch(self, path: Path, state: tuple[int, int], now_s: float) -> folder.Unfinished:
        """Return since when an incomplete file has been as it is."""
        known = self._unfinished.get(str(path))
        if known is None or known.state != state:
            known = self._unfinished[str(path)] = folder.Unfinished(state, now_s)
        return known

    # slices -----------------------------------------------------------------------------------------------

    def _stack(self, path: Path, piece: StoredSlice, now_s: float) -> list[StoredVolume]:
        """Put a slice to those of its volume."""
        place = piece.identity.series_uid, piece.number
        known = self._blank.get(place, 0)
        if piece.zero_tail and not (
            self._familiar(path, piece.zero_tail, known, piece.data.shape) or self._waited(path, now_s)
        ):
            raise _zeros(path, piece.zero_tail)
        self._blank[place] = max(piece.zero_tail, known)
        volume = self._stacker.add(path, piece)
        return [] if volume is None else [volume]

    def _expired(self, now_s: float) -> Iterator[Finding]:
        """Give up volumes whose missing slices have not come; close those that never said how many they have."""
        partial = self._stacker.partial
        self._partial = {key: known for key, known in self._partial.items() if key in partial}
        for key, volume in partial.items():
            known = self._partial.get(key)
            state = len(volume.slices), 0
            if known is None or known.state != state:
                self._partial[key] = folder.Unfinished(state, now_s)
            elif now_s - known.since_s >= self._gap_timeout_s:
                try:
                    with readers.seam(volume.path):
                        finished = self._stacker.finish(key)
                    yield Finding(path=volume.path, stored=finished)
                except VolumeError as error:
                    yield Finding(path=volume.path, reason=f"incomplete: {error}", identity=volume.identity)

    # ends in zeros ----------------------------------------------------------------------------------------

    def _zeros_explained(self, path: Path, stored: StoredVolume, now_s: float) -> bool:
        """Accept a blank end that the series has had before, or that stayed and may be a blank edge.

        A blank edge is less than a slice; a NIfTI series may be masked from its first volume on. Up to a row of
        zeros may be air: then it is enough that the file is the same at a second look.
        """
        if not stored.zero_tail:
            return True
        place = stored.identity.series_uid, _WHOLE
        if self._familiar(path, stored.zero_tail, self._blank.get(place, 0), stored.data.shape):
            return True
        if not self._waited(path, now_s) or stored.zero_tail == stored.data.size:
            return False
        masked = place not in self._blank and readers.is_nifti(path)
        return masked or stored.zero_tail < stored.data.shape[0] * stored.data.shape[1]

    def _familiar(self, path: Path, zeros: int, known: int, shape: tuple[int, ...]) -> bool:
        """Whether a blank end is no longer than one seen before; a little longer if the file is at rest."""
        if zeros <= known:
            return True
        margin = max(shape[0], known + shape[0] * shape[1] // _BLANK_MARGIN if known > shape[0] else 0)
        unfinished = self._unfinished.get(str(path))
        return zeros <= margin and unfinished is not None and unfinished.state == readers.state(path)

    def _waited(self, path: Path, now_s: float) -> bool:
        """Whether a file has stayed as it is for as long as a gap is waited for."""
        known = self._unfinished.get(str(path))
        return known is not None and now_s - known.since_s >= self._gap_timeout_s

    def _noted(self, stored: StoredVolume) -> StoredVolume:
        """Remember the blank end of a volume that is taken; the first that is so long is noted."""
        place = stored.identity.series_uid, _WHOLE
        known = self._blank.setdefault(place, 0)
        if stored.zero_tail <= known:
            return stored
        self._blank[place] = stored.zero_tail
        note = f"the last {stored.zero_tail} values are zero: blank, or never written"
        return dataclasses.replace(stored, notes=(*stored.notes, note))

    # files that are given up ------------------------------------------------------------------------------

    def _postpone(self, path: Path, error: Exception, now_s: float) -> list[Finding]:
        """Wait for an incomplete file as long as it changes, then give it up."""
        if now_s - self._watch(path, readers.state(path), now_s).since_s < self._gap_timeout_s:
            return []
        kind = "truncated" if isinstance(error, IncompleteFile) else "unreadable"
        return self._reject(path, f"{kind}: {error}")

    def _reject(self, path: Path, reason: str) -> list[Finding]:
        """Give a file up, and the volume that its slice belongs to."""
        self._settle(path)
        identity = self._readers.identify(path)
        if identity is not None:
            if self._selection.refuses(identity):
                return []
            self._stacker.drop(identity.part)
        return [Finding(path=path, reason=reason, identity=identity)]


def first_began(identities: Iterable[Identity]) -> dict[str, float]:
    """Return when each series began; nothing where one does not tell."""
    found: dict[str, float] = {}
    for identity in identities:
        if identity.began_s is None:
            return {}
        found[identity.series_uid] = min(identity.began_s, found.get(identity.series_uid, math.inf))
    return found


def _zeros(path: Path, count: int) -> IncompleteFile:
    return IncompleteFile(path, "pixels", "values to the end", f"{count} zeros at the end")
