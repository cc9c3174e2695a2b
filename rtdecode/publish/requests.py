"""What clients may ask of the daemon: strict types for untrusted bytes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from rtdecode.errors import ProtocolError

MAX_BYTES = 64 << 10
Label = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:+ -]+\Z")]
RunNumber = Annotated[int, Meta(ge=1, le=9999)]
Seconds = Annotated[float, Meta(ge=0.0, le=86400.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Interval = Annotated[list[Fraction], Meta(max_length=2)]
Reason = Annotated[str, Meta(max_length=1000)]


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="request", forbid_unknown_fields=True):
    """One msgpack map; `request` holds the name of its kind.

    Attributes
    ----------
    v : int
        Version of the wire.
    id : int
        The answer repeats it.
    expires : float or None
        When the client gives the request up, seconds by the daemon's monotonic clock as `ping` tells it: it is not
        carried out after that. None: never.
    session : str or None
        The session that it is meant for, as messages name it: in another one it is refused. None: whichever runs.
    """

    v: Literal[1]
    id: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    expires: float | None = None
    session: Label | None = None


class Ping(Request, frozen=True, tag="ping"):
    """Asks for the daemon's clock."""


class Snapshot(Request, frozen=True, tag="snapshot"):
    """Asks for the last message of each topic."""


class Replay(Request, frozen=True, tag="replay"):
    """Asks for the messages of a topic from a sequence number on.

    Attributes
    ----------
    topic : str
        Its name.
    since_seq : int
        `seq` of the first that is wanted.
    """

    topic: Label
    since_seq: Count


class Mode(Request, frozen=True, tag="mode"):
    """Asks to decode with a bundle, be it the first or another one; or to calibrate once more, from now on.

    Attributes
    ----------
    mode : {"calibrate", "decode"}
        Calibrate: trials up to now no longer calibrate, those of the next runs do. Until there is another bundle,
        trials are decoded as before.
    bundle : str or None
        Folder of the ParticipantBundle, as the daemon's machine sees it; needed to decode.
    last_run : int or None
        To decode: the calibration is over with this run. None: it goes on as the settings say, whatever is decoded
        meanwhile.
    runs : int or None
        To calibrate: how many runs, an open one included. None: as the settings say.
    token : str or None
        Names the command in the session: asked again, it has the same answer and is not carried out twice. To calibrate
        it is needed.
    reason : str
        Why, in words; kept in the journal.
    """

    mode: Literal["calibrate", "decode"]
    bundle: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]*\Z")] | None = None
    last_run: RunNumber | None = None
    runs: Annotated[int, Meta(ge=1, le=1000)] | None = None
    token: Label | None = None
    reason: Reason = ""


class Control(Request, frozen=True, tag="control"):
    """Steers the session; in the journal, so that a resumed session is as the commands have left it.

    Attributes
    ----------
    token : str
        Names the command in the session: asked again, it has the same answer and is not carried out twice.
    command : {"pause", "resume", "feedback", "bad_run", "stop"}
        Pause: trials that become due are not decoded and say so; volumes and betas go on. Resume: they are again.
        Feedback: what is given of `target`, `regions`, `threshold` and `half_life_s` holds from now on. Bad run: trials
        of `run` do not calibrate, are not decoded and are invalid in the tables. Stop: the session is ended in order.
    reason : str
        Why, in words; kept in the journal.
    run : int or None
        That is bad.
    target : str or None
        A category, for the score ``category``.
    regions : list of str or None
        Names of ``[estimate.regions]``, as many as the score has.
    threshold : float or None
        Value from which the score counts as reached.
    half_life_s : float or None
        Of the smoothing, seconds.
    """

    token: Label
    command: Literal["pause", "resume", "feedback", "bad_run", "stop"]
    reason: Reason = ""
    run: RunNumber | None = None
    target: Label | None = None
    regions: Annotated[list[Label], Meta(max_length=2)] | None = None
    threshold: Annotated[float, Meta(ge=-1e9, le=1e9)] | None = None
    half_life_s: Seconds | None = None


class CalibrationProgress(Request, frozen=True, tag="calibration"):
    """Publishes the progress of a calibration.

    Attributes
    ----------
    trials : int
        Collected so far.
    percentile : float or None
        Held-out mean percentile rank, .5 is chance.
    interval : list of float
        Its 95 % interval.
    p_value : float or None
        How often shuffled labels do as well.
    top1, top1_chance, two_way, ceiling : float or None
        See `rtdecode.client.Calibration`.
    top1_interval, two_way_interval, ceiling_interval : list of float
        Their 95 % intervals.
    ahead_min, ahead_trials, projected, projected_low, projected_high : list
        What more trials would bring; each has an item for each time ahead.
    advice : {"", "go on", "enough", "no signal"}
        Whether more trials are worth their time.
    why : str
        The reason.
    note : str
        What the page shows beside it.
    """

    trials: Count
    percentile: Fraction | None = None
    interval: Interval = []
    p_value: Fraction | None = None
    top1: Fraction | None = None
    top1_chance: Fraction | None = None
    top1_interval: Interval = []
    two_way: Fraction | None = None
    two_way_interval: Interval = []
    ceiling: Fraction | None = None
    ceiling_interval: Interval = []
    ahead_min: Annotated[list[Seconds], Meta(max_length=16)] = []
    ahead_trials: Annotated[list[Count], Meta(max_length=16)] = []
    projected: Annotated[list[Fraction], Meta(max_length=16)] = []
    projected_low: Annotated[list[Fraction], Meta(max_length=16)] = []
    projected_high: Annotated[list[Fraction], Meta(max_length=16)] = []
    advice: Literal["", "go on", "enough", "no signal"] = ""
    why: Annotated[str, Meta(max_length=1000)] = ""
    note: Annotated[str, Meta(max_length=1000)] = ""


class Event(Request, frozen=True, tag="event"):
    """Announces something of the experiment; `kind` decides which fields are needed.

    ``run_start``: run, optionally expected_volumes and the t_r_s that the experiment counts on. ``trial``: run, trial,
    onset_s, duration_s, optionally stimulus and condition. ``run_end``: run, optionally volumes. ``film``: run,
    stimulus (a name of the settings' ``film.predictions``) and onset_s, which counts for the volumes from now on;
    negative where the film goes on from before the run. ``amend``: run, trial, and whichever of onset_s, duration_s,
    stimulus and condition were told wrong. ``cancel``: run, trial, which was not shown. Both are taken until the
    trial's beta is final.

    Attributes
    ----------
    kind : {"run_start", "trial", "run_end", "film", "amend", "cancel"}
        What is announced.
    run : int
        From 1.
    trial : str or None
        Name of the trial, unique in the session.
    onset_s, duration_s : float or None
        Seconds; onsets count from the start of acquisition of volume 0 of the run.
    stimulus : str or None
        Name of the picture, or film, that is shown.
    condition : str or None
        ``trial_type`` of the events table.
    candidates : list of str or None
        Pictures, two or more, of which the session is to say which fits the response best, by the encoder of its
        bundle.
    expected_volumes : int or None
        That the run will have.
    volumes : int or None
        That the run had; it is closed as soon as these are there.
    t_r_s : float or None
        Repetition time that the experiment counts on, seconds; another one of the volumes is a `fault`.
    """

    kind: Literal["run_start", "trial", "run_end", "film", "amend", "cancel"]
    run: RunNumber
    trial: Label | None = None
    onset_s: Annotated[float, Meta(ge=-86400.0, le=86400.0)] | None = None
    duration_s: Seconds | None = None
    stimulus: Label | None = None
    condition: Label | None = None
    candidates: Annotated[list[Label], Meta(min_length=2, max_length=64)] | None = None
    expected_volumes: Count | None = None
    volumes: Count | None = None
    t_r_s: Seconds | None = None


AnyRequest = Ping | Snapshot | Replay | Mode | Control | CalibrationProgress | Event
_decoder: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)


_NEEDED = {
    "trial": ("trial", "onset_s", "duration_s"),
    "film": ("stimulus", "onset_s"),
    "amend": ("trial",),
    "cancel": ("trial",),
}
_STEERING = ("target", "regions", "threshold", "half_life_s")


def decode(payload: bytes) -> AnyRequest:
    """Turn one request frame into its type.

    Raises
    ------
    ProtocolError
        Too large, malformed, unknown, or a field is missing or out of bounds.
    """
    if len(payload) > MAX_BYTES:
        raise ProtocolError(f"request of {len(payload)} bytes; at most {MAX_BYTES} are taken")
    try:
        request = _decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:  # not UTF-8; beyond 64 bits
        raise ProtocolError(f"request not understood: {error}") from None
    if isinstance(request, Event):
        missing = [name for name in _NEEDED.get(request.kind, ()) if getattr(request, name) is None]
        if missing:
            raise ProtocolError(f"{request.kind} event lacks {', '.join(missing)}")
        if request.kind in ("trial", "amend") and (request.onset_s or 0.0) < 0:
            raise ProtocolError(f"request not understood: expected onset_s >= 0 of a trial, got {request.onset_s:g}")
    if isinstance(request, Mode) and request.mode == "decode" and request.bundle is None:
        raise ProtocolError("mode decode needs a bundle")
    if isinstance(request, Mode) and request.mode == "calibrate" and request.token is None:
        raise ProtocolError("mode calibrate needs a token, a name of this command: asked twice it is carried out once")
    if isinstance(request, Control):
        _check_control(request)
    return request


def _check_control(request: Control) -> None:
    """Refuse a command that lacks what it is about, or has what another is about."""
    given = [name for name in _STEERING if getattr(request, name) is not None]
    if request.command == "feedback" and not given:
        raise ProtocolError(f"feedback needs one of {', '.join(_STEERING)}")
    if (request.command == "bad_run") != (request.run is not None):
        raise ProtocolError(f"run: expected a number for bad_run alone, got {request.run} for {request.command}")
    if given and request.command != "feedback":
        raise ProtocolError(f"{', '.join(given)}: expected none for {request.command}; the command feedback takes them")
