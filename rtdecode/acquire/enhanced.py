"""Enhanced (multi-frame) MR: a volume per file as Siemens XA exports it, or a whole series in one file.

Frames are sorted by what they say of themselves: echo and component first, then place along the slice normal, then
time. The n-th frame at each place belongs to volume n.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.acquire import geometry, pixels, timing
from rtdecode.acquire.elements import EXPLICIT_LITTLE, PIXEL_DATA, Span
from rtdecode.acquire.header import (
    BETWEEN,
    COLUMNS,
    COMPONENT,
    COMPONENTS,
    ECHO_NUMBER,
    FRAMES,
    MANUFACTURER,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    REPETITION_TIME,
    ROWS,
    SERIES_UID,
    SOP_CLASS_UID,
    THICKNESS,
    Fields,
    Header,
    moment,
)
from rtdecode.acquire.latest import Latest
from rtdecode.acquire.slices import scaling
from rtdecode.acquire.stored import MAGNITUDE, NO_PHILIPS_TIMES, StoredVolume, differing
from rtdecode.errors import VolumeError

SHARED, PER_FRAME = 0x52009229, 0x52009230

_MEASURES, _ORIENTATIONS, _POSITIONS, _CONTENT = 0x00289110, 0x00209116, 0x00209113, 0x00209111
_TRANSFORMATION, _ECHO, _TIMING, _FRAME_TYPE = 0x00289145, 0x00189114, 0x00189112, 0x00189226
_FRAME_TIME, _TEMPORAL_INDEX, _DIMENSIONS = 0x00189074, 0x00209128, 0x00209157
_PHILIPS_FRAME = ("Philips MR Imaging DD 005", 0x0F)
_MAX_FRAMES = 200_000
_MOST_ECHOES = 64
_POSITION_MARK = b"\x20\x00\x32\x00DS"
_PER_FRAME_MARK = b"\x00\x52\x30\x92SQ\x00\x00"
_PIXEL_MARK = b"\xe0\x7f\x10\x00OW\x00\x00"
_MARK_BYTES = 96
_ECHO_MARK = b"\x18\x00\x82\x90FD"
_ECHO_MARK_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a frame says of itself."""

    index: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    between_mm: float | None
    echo_ms: float
    echo: int | None
    component: str
    frame_type: tuple[str, ...]
    turn: tuple[float, float, tuple[int, ...]]
    time_s: float | None
    t_r_s: float | None
    scale: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Part:
    """One echo and component: which frames are which volume."""

    echo: int | None
    echo_ms: float
    component: str
    frame_type: tuple[str, ...]
    frames: NDArray[np.intp]  # (volumes, slices)
    affine: NDArray[np.float64]
    t_r_s: float | None
    slice_times_s: tuple[NDArray[np.float64] | None, ...]
    started_s: tuple[float | None, ...]
    scales: tuple[tuple[tuple[float, float], ...], ...]  # (volumes, slices)
    notes: tuple[str, ...]
    why_no_times: str


@dataclass(frozen=True, slots=True)
class _Known:
    """A series whose files hold a volume each: what later files must repeat, byte for byte."""

    first: bytes
    last: bytes
    layout: pixels.PixelLayout
    part: _Part


class EnhancedReader:
    """Reads multi-frame files; remembers the geometry of series that come as a file per volume."""

    def __init__(self) -> None:
        self._known: Latest[tuple[bytes, ...], _Known] = Latest()
        self._echo_times: Latest[str, list[float]] = Latest()

    def read(self, header: Header) -> tuple[StoredVolume, ...]:
        """Decode all volumes of a file.

        Parameters
        ----------
        header : Header
            Walked up to `SHARED` at least; more is walked where it must be.

        Raises
        ------
        VolumeError
            If the frames do not make volumes.
        """
        key = _key(header)
        known = self._known.get(key)
        if known is not None and _repeats(header, known):
            return _volumes(header, self._numbered(header, (known.part,)))
        if PIXEL_DATA not in header.elements.spans:
            header = Header(header.path, header.file, packed=header.packed)
        parts = _parts(header)
        volumes = _volumes(header, self._numbered(header, parts))
        if len(volumes) == 1 and header.elements.syntax == EXPLICIT_LITTLE and _holds(header, parts[0], volumes[0]):
            first, last = _marks(header.elements.content, header.elements.spans[PIXEL_DATA].start)
            self._known[key] = _Known(first, last, pixels.layout(header), parts[0])
        return volumes

    def _numbered(self, header: Header, parts: tuple[_Part, ...]) -> tuple[_Part, ...]:
        """Give echoes without a number one by their echo times, among those of the series so far."""
        series = header.text(SERIES_UID)
        times = self._echo_times.get(series, [])
        new = {part.echo_ms for part in parts if part.component == MAGNITUDE and part.echo_ms > 0}
        if not new <= set(times):
            self._echo_times[series] = times = sorted({*times, *new})[:_MOST_ECHOES]
        return tuple(
            dataclasses.replace(part, echo=times.index(part.echo_ms) + 1)
            if part.echo is None and part.echo_ms in times
            else part
            for part in parts
        )


def _holds(header: Header, part: _Part, volume: StoredVolume) -> bool:
    """Whether what a file says of scaling and timing holds for the series: it is that of later files, unread."""
    times_s, scaled = volume.slice_times_s, part.scales != (((1.0, 0.0),) * volume.data.shape[2],)
    if scaled or not header.text(MANUFACTURER).upper().startswith("SIEMENS"):
        return False
    return times_s is None or not timing.slice_times(times_s, volume.t_r_s)[1]


def _key(header: Header) -> tuple[bytes, ...]:
    """Return what tells files of other geometry or echo apart; the echo is what the first frame says."""
    content = header.elements.content
    echo = content.find(_ECHO_MARK, max(content.find(_PER_FRAME_MARK), 0))
    tags = (SERIES_UID, SOP_CLASS_UID, ROWS, COLUMNS, FRAMES, COMPONENT)
    return (*(header.raw(tag) for tag in tags), content[echo : echo + _ECHO_MARK_BYTES] if echo >= 0 else b"")


def _marks(content: bytes, pixels_at: int) -> tuple[bytes, bytes]:
    """Bytes with the positions of the first and the last frame."""
    start = content.find(_PER_FRAME_MARK)
    first = content.find(_POSITION_MARK, max(start, 0), pixels_at)
    last = content.rfind(_POSITION_MARK, max(start, 0), pixels_at)
    return content[first : first + _MARK_BYTES], content[last : last + _MARK_BYTES]


def _repeats(header: Header, known: _Known) -> bool:
    """Whether a file has the frames of the one before in the same places; finds its pixels if so."""
    elements = header.elements
    if elements.syntax != EXPLICIT_LITTLE or pixels.layout(header) != known.layout:
        return False
    size = known.layout.nbytes + known.layout.nbytes % 2
    mark = len(elements.content) - size - 12
    expected = _PIXEL_MARK + size.to_bytes(4, "little")
    if mark < 0 or elements.content[mark : mark + 12] != expected:
        return False
    if _marks(elements.content, mark) != (known.first, known.last):
        return False
    elements.spans[PIXEL_DATA] = Span(b"OW", mark + 12, size)
    return True


def _parts(header: Header) -> tuple[_Part, ...]:
    frames = _frames(header)
    keys = sorted({(frame.echo_ms, frame.component != MAGNITUDE, frame.component) for frame in frames})
    parts = []
    for echo_ms, _, component in keys:
        own = [frame for frame in frames if (frame.echo_ms, frame.component) == (echo_ms, component)]
        parts.append(_part(header, own))
    return tuple(parts)


def _frames(header: Header) -> list[_Frame]:
    items, shared = header.items(PER_FRAME), header.items(SHARED)
    count = pixels.layout(header).frames
    if not 0 < len(items) <= _MAX_FRAMES or len(items) != count:
        raise VolumeError(header.path, "PerFrameFunctionalGroups", f"one item for each of {count} frames", len(items))
    return [_frame(header, index, item, shared[0] if shared else item) for index, item in enumerate(items)]


def _frame(header: Header, index: int, item: Fields, shared: Fields) -> _Frame:
    def group(tag: int) -> Fields:
        found = item.items(tag) or shared.items(tag)
        return found[0] if found else header

    content, measures, echo, kind = group(_CONTENT), group(_MEASURES), group(_ECHO), group(_FRAME_TYPE)
    private = item.items(item.private(0x2005, *_PHILIPS_FRAME))
    number = echo.value(ECHO_NUMBER)
    t_r_ms = group(_TIMING).value(REPETITION_TIME)
    words = kind.words(0x00089007)
    time_s = moment(content.text(_FRAME_TIME))
    return _Frame(
        index=index,
        position=group(_POSITIONS).numbers(POSITION, 3, "ImagePositionPatient"),
        orientation=group(_ORIENTATIONS).numbers(ORIENTATION, 6, "ImageOrientationPatient"),
        spacing_mm=measures.numbers(PIXEL_SPACING, 2, "PixelSpacing"),
        between_mm=measures.value(BETWEEN) or measures.value(THICKNESS),
        echo_ms=echo.value(0x00189082) or 0.0,
        echo=int(number) if number and 0 < number < _MAX_FRAMES else None,
        component=_component(kind.text(COMPONENT), words),
        frame_type=words,
        turn=(content.value(_TEMPORAL_INDEX) or 0.0, time_s or 0.0, _integers(content, _DIMENSIONS)),
        time_s=time_s,
        t_r_s=t_r_ms / 1000 if t_r_ms and t_r_ms > 0 else None,
        scale=scaling(group(_TRANSFORMATION), private[0] if private else item),
    )


def _component(stated: str, words: tuple[str, ...]) -> str:
    if stated in COMPONENTS:
        return COMPONENTS[stated]
    return words[3] if len(words) > 3 and words[3] not in ("", "NONE", MAGNITUDE) else MAGNITUDE


def _integers(fields: Fields, tag: int) -> tuple[int, ...]:
    raw = fields.raw(tag)
    order = f"{fields.elements.order}u4"
    return tuple(int(value) for value in np.frombuffer(raw[: len(raw) // 4 * 4], order))


def _part(header: Header, own: list[_Frame]) -> _Part:
    path, first = header.path, own[0]
    if any(not np.allclose(frame.orientation, first.orientation, atol=1e-3) for frame in own):
        raise VolumeError(path, "ImageOrientationPatient", "one orientation for all frames", "several")
    rank, centres = geometry.places(path, np.array([frame.position for frame in own]), first.orientation)
    at: list[list[_Frame]] = [[] for _ in centres]
    for place, frame in zip(rank, own, strict=True):
        at[place].append(frame)
    for frames in at:
        frames.sort(key=lambda frame: (frame.turn, frame.index))
    depths = [len(frames) for frames in at]
    whole = min(depths)
    notes = () if max(depths) == whole else (f"{max(depths) - whole} volumes at the end lack slices and are left out",)
    volumes = [[frames[turn] for frames in at] for turn in range(whole)]
    step = geometry.step(path, centres, first.orientation, first.between_mm)
    times, why = _slice_times(header, volumes)
    return _Part(
        echo=first.echo,
        echo_ms=first.echo_ms,
        component=first.component,
        frame_type=first.frame_type,
        frames=np.array([[frame.index for frame in volume] for volume in volumes]),
        affine=geometry.affine(path, first.orientation, first.spacing_mm, step, centres[0]),
        t_r_s=first.t_r_s,
        slice_times_s=times,
        started_s=tuple(_started(volume) for volume in volumes),
        scales=tuple(tuple(frame.scale for frame in volume) for volume in volumes),
        notes=notes,
        why_no_times=why,
    )


def _started(volume: list[_Frame]) -> float | None:
    times = [frame.time_s for frame in volume if frame.time_s is not None]
    return float(timing.unwrapped(times).min()) if len(times) == len(volume) else None


def _slice_times(header: Header, volumes: list[list[_Frame]]) -> tuple[tuple[NDArray[np.float64] | None, ...], str]:
    """Slice times of each volume by its frames, and why there are none."""
    nothing = (None,) * len(volumes)
    if header.text(0x00180023) == "3D":
        return nothing, "a three-dimensional acquisition has none"
    if header.text(MANUFACTURER).upper().startswith("PHILIPS"):
        return nothing, NO_PHILIPS_TIMES
    out = []
    for volume in volumes:
        times = [frame.time_s for frame in volume if frame.time_s is not None]
        if len(times) != len(volume) or max(times) == min(times):
            return nothing, "frames carry no acquisition times that differ"
        out.append(timing.since_first(times))
    return tuple(out), ""


def _volumes(header: Header, parts: tuple[_Part, ...]) -> tuple[StoredVolume, ...]:
    stored, zero_tail = pixels.frames(header)
    per_frame = stored.shape[1] * stored.shape[2]
    most = max(len(part.frames) for part in parts)
    single = most == 1 and len(parts) == 1
    identity = header.volume_identity() if single else header.identity()
    origin = header.origin("enhanced-per-volume" if single else "enhanced-series")
    out = []
    for part in parts:
        for turn, chosen in enumerate(part.frames):
            data: NDArray[Any] = np.ascontiguousarray(stored[chosen].transpose(2, 1, 0))
            slope, intercept = part.scales[turn][0]
            started = header.acquired_s() if single else part.started_s[turn]
            out.append(
                StoredVolume(
                    identity=dataclasses.replace(
                        identity,
                        instance=(identity.instance - 1) * most + turn + 1,
                        uid=identity.uid if single else f"{identity.uid}#{chosen[0]}",
                        echo=part.echo,
                        component=part.component,
                        echo_ms=None,
                    ),
                    origin=dataclasses.replace(origin, image_type=part.frame_type or origin.image_type),
                    data=data,
                    slope=slope,
                    intercept=intercept,
                    scales=differing(part.scales[turn]),
                    affine=part.affine,
                    t_r_s=part.t_r_s,
                    slice_times_s=part.slice_times_s[turn],
                    acquired_s=started,
                    zero_tail=_tail(chosen, zero_tail, stored.shape[0], per_frame),
                    notes=part.notes,
                    unknown={"slice_times_s": part.why_no_times},
                )
            )
    return tuple(sorted(out, key=lambda volume: volume.identity.order))


def _tail(chosen: NDArray[np.intp], zero_tail: int, n_frames: int, per_frame: int) -> int:
    """How much of a run of zeros at the end of the file lies in some frames."""
    written = n_frames * per_frame - zero_tail
    ends = (chosen + 1) * per_frame
    return int(np.clip(ends - np.maximum(written, ends - per_frame), 0, None).sum())
