"""Client of the rtdecode stream. Self-contained: copy this file to the stimulus computer.

Needs Python >= 3.8, pyzmq and msgpack, and nothing else of rtdecode.

>>> with Client() as client:                                  # doctest: +SKIP
...     client.event(kind="run_start", run=1)
...     client.event(kind="trial", run=1, trial="t1", onset_s=0.0, duration_s=2.0, stimulus="cat07")
...     for message in client.messages(timeout_s=30):
...         if isinstance(message, Caption) and message.final:
...             print(message.trial, message.text)

A message of a topic that this file does not know comes as `Other`, numbered and complete like the rest. `Listener`
calls a function with each message, on a thread of its own; `AsyncClient` is for asyncio.

A connection that breaks is made again by itself, and what was missed meanwhile is asked for. A client that is told
nothing for a second, heartbeats included, says so: a warning of the logger ``rtdecode.client``, and `Client.silent`.

Wire format, version 1: the stream is a PUB socket with two frames per message, the topic and one msgpack map.
Requests go to a ROUTER socket as one msgpack map per frame and are answered with one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import threading
import time
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any, AsyncIterator, Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import msgpack
import zmq

VERSION = 1
GAP_TIMEOUT_S = 2.0
"""How long `Client.receive` waits for messages that it missed, and how long until it asks again."""
SILENT_S = 1.0
"""How long nothing may come, at two heartbeats a second or more; else two of their periods."""
STREAM = "tcp://127.0.0.1:5591"
REQUESTS = "tcp://127.0.0.1:5592"
_log = logging.getLogger("rtdecode.client")


class WireError(Exception):
    """A message is not of this version or lacks fields."""


class RequestError(Exception):
    """The daemon refused a request; the text says why.

    `code` is ``"late"`` (it came after the client had given up), ``"busy"`` (not now, ask again), ``"session"`` (it is
    meant for another session), ``"role"`` (the client's key does not allow it), ``"topic"`` (there is none of that
    name) or empty.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Array:
    """A numeric array: ``numpy.frombuffer(a.data, a.dtype).reshape(a.shape)``.

    Attributes
    ----------
    dtype : str
        As numpy names it, for example ``"<f4"``: little-endian, four bytes, floating point.
    shape : tuple of int
    data : bytes
        The values, the last axis fastest.
    """

    dtype: str
    shape: Tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Message:
    """Header that all messages share.

    Attributes
    ----------
    session : str
        Identifier of the session; no other recording has it.
    run : int or None
        Number of the run, from 1.
    seq : int or None
        Counts without gaps per session and topic, from 0; None for heartbeats.
    trial : str or None
        Name of the trial, as the experiment announced it.
    volume : int or None
        Index of the last volume that the message rests on, from 0 after dummies.
    revision : int or None
        Counts the betas of a trial, from 0; embedding, score, caption and picture of one beta share it.
    final : bool
        No later revision of the trial comes.
    t_acquired : float or None
        Start of acquisition of that volume by the scanner's clock, seconds since 1970; None if unknown.
    t_received : float or None
        When its file was found complete, seconds since 1970.
    t_published : float
        When the message was sent, seconds since 1970.
    stages : dict of str to float
        Milliseconds per stage; ``total`` counts from `t_received`.
    invalid : str or None
        Why a trial has no result (it is then `final`).
    protocol : str or None
        First 12 digits of the SHA-256 of the protocol's file; None where the session has none.
    """

    session: str = ""
    run: Optional[int] = None
    seq: Optional[int] = None
    trial: Optional[str] = None
    volume: Optional[int] = None
    revision: Optional[int] = None
    final: bool = False
    t_acquired: Optional[float] = None
    t_received: Optional[float] = None
    t_published: float = 0.0
    stages: Dict[str, float] = field(default_factory=dict)
    invalid: Optional[str] = None
    protocol: Optional[str] = None


@dataclass(frozen=True)
class Session(Message):
    """State of the session: sent at its start and whenever it changes.

    Attributes
    ----------
    state : {"resuming", "running", "ending", "ended"}
        Resuming: what came before a crash is worked through again. Ending: what has come is finished.
    mode : {"calibrate", "decode"}
        Calibrate until a bundle is asked for.
    participant : str
        BIDS label.
    folder : str
        Name of the session folder.
    pack : str
        Name of the engine pack.
    bundle : str or None
        Identity of the participant bundle that is loaded.
    categories : tuple of str
        What a score decides between.
    calibration_runs : int
        Runs 1 to this one calibrate.
    absent : tuple of str
        What the engine pack cannot make: ``"caption"`` or ``"picture"``.
    censor_fd_mm : float
        Framewise displacement that is allowed, mm; `Volume.censored` says which volumes are left out of the fit.
    paused : bool
        Trials that become due are not decoded.
    bad_runs : tuple of int
        Runs that were marked as bad: their trials do not count.
    calibration_from : tuple of float
        Run, and onset in it in seconds, from which trials calibrate, where calibration was begun again; else empty.
    blinded : bool
        Whether the participant is shown a score or a sham is known to nobody; what would tell it is withheld.
    """

    state: str = ""
    mode: str = ""
    participant: str = ""
    folder: str = ""
    pack: str = ""
    bundle: Optional[str] = None
    categories: Tuple[str, ...] = ()
    calibration_runs: int = 0
    absent: Tuple[str, ...] = ()
    censor_fd_mm: float = 0.0
    paused: bool = False
    bad_runs: Tuple[int, ...] = ()
    calibration_from: Tuple[float, ...] = ()
    blinded: bool = False


@dataclass(frozen=True)
class Run(Message):
    """A run starts or ends; counts are those known by then.

    Attributes
    ----------
    state : {"started", "ended"}
        What has happened.
    expected : int or None
        Volumes that the experiment announced.
    received : int
        Volumes that could be used.
    skipped : int
        Volumes that could not, or never came.
    """

    state: str = ""
    expected: Optional[int] = None
    received: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Volume(Message):
    """One volume passed registration and the GLM.

    Attributes
    ----------
    motion : tuple of float
        x, y, z in mm, then rotations about x, y, z in radians.
    fd_mm : float
        Framewise displacement, mm.
    dvars : float
        Root mean square of the change from the volume before, percent of the mean.
    tsnr : float
        Median temporal signal-to-noise ratio of the run so far; nan before 8 volumes.
    fit : float
        Correlation of the registered volume with the reference, at most 1.
    censored : bool
        It moved too much and is left out of the fit. The first volume after a jerk, back where the head lay before,
        moved as far and is not.
    lag : int
        Inputs that wait behind this one.
    regions : dict of str to float
        Percent signal change of each region of the settings; nan where the volume is censored.
    parcels : dict of str to dict of str to float
        The same of each parcel of each label image, by its name in the settings and the parcel's label.
    """

    motion: Tuple[float, ...] = ()
    fd_mm: float = 0.0
    dvars: float = 0.0
    tsnr: float = 0.0
    fit: float = 0.0
    censored: bool = False
    lag: int = 0
    regions: Dict[str, float] = field(default_factory=dict)
    parcels: Dict[str, Dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped(Message):
    """A volume or file that could not be used, and why.

    Attributes
    ----------
    path : str
        Name of the file, without its folder; empty where none came.
    reason : str
        What was expected and what came.
    """

    path: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Beta(Message):
    """Response estimate of a trial.

    Attributes
    ----------
    onset_s, duration_s : float
        Of the trial, seconds from the start of acquisition of volume 0 of the run.
    delay_s : float
        From the onset to the end of the last volume used, seconds.
    stimulus : str or None
        Name of the picture that was shown.
    condition : str or None
        ``trial_type`` of BIDS events.
    beta : Array or None
        Percent signal change per voxel of the session's mask, shape (voxels,).
    """

    onset_s: float = 0.0
    duration_s: float = 0.0
    delay_s: float = 0.0
    stimulus: Optional[str] = None
    condition: Optional[str] = None
    beta: Optional[Array] = None


@dataclass(frozen=True)
class Embedding(Message):
    """Tokens decoded from a beta.

    Attributes
    ----------
    tokens : Array or None
        Shape (tokens, width).
    nearest : dict of str to float
        Pictures of the session's pool (``decode.pool``) that are most like the tokens, and their cosines, best first.
    unsearched : str
        Why the pool named none; empty where it did, and without a pool.
    shown : int
        Trials of the stimulus so far of whose mean beta it is made (``decode.average_repeats``); 1: of this one alone.
    """

    tokens: Optional[Array] = None
    nearest: Dict[str, float] = field(default_factory=dict)
    unsearched: str = ""
    shown: int = 1


@dataclass(frozen=True)
class Score(Message):
    """Category probabilities, retrieval rank and evidence.

    `shift` and `spread` tell how the decoded trials' final betas before this one differ from those of the calibration,
    in its standard deviations.

    Attributes
    ----------
    predicted : str
        Best category.
    probabilities : dict of str to float
        Of each category; they sum to one.
    top : tuple of str
        Best candidates of the retrieval pool, best first, at most five.
    rank : float or None
        Of what was shown among the candidates, 1 is best; None if the truth is unknown.
    pool : int
        Number of candidates.
    evidence : float
        Probability, learned from held-out calibration trials, that `predicted` is right.
    chance : float
        What guessing gives.
    supported : bool
        Whether the trial may be shown as decoded; where it is not, picture and caption are made of noise.
    refused : str
        Why it may not; empty where it may.
    p_content, p_category : float
        How often a response without a picture in it looks at least as much like one with a picture, and points at least
        as surely to a category.
    p_groups : dict of str to float
        How often such a response says as much of a token group of the pack; empty where it has only one.
    unknown : tuple of str
        What of a supported trial's picture is not supported: ``"category"``, and token groups.
    p_motion : float
        How often a response of the calibration lies at least so far from the average one.
    p_signal : float or None
        How often rest looks at least as much like a response to a stimulus; None where calibration had no rest.
    p_agreement : float or None
        How often another picture of the pool fits at least as well as the one announced.
    plausible : tuple of str
        Categories of which one is right in 90 % of trials; empty where the response is an outlier.
    null : str
        What the p-values rest on: ``"null trials"``, ``"repeats"`` or ``"differences"``.
    claim : float or None
        Evidence that this session decodes, over its trials so far: 20 or more may be claimed whenever one looks, and
        stays.
    shown : int
        Trials of the stimulus so far, this one included, of whose mean beta picture, caption and embedding are made
        (``decode.average_repeats``); 1: of this one alone.
    average_predicted : str or None
        Best category by that mean; None where the stimulus was not shown before. No evidence is stated of it: all else
        here is of this trial alone.
    average_rank : float or None
        As `rank`, by that mean.
    shift : float or None
        Median over voxels of the distance of the mean; about .67 / sqrt(trials) without drift.
    spread : float or None
        Median over voxels of the deviation; about 1 without drift.
    stimulus, condition : str or None
        As of `Beta`.
    onset_s : float
        As of `Beta`, seconds.
    """

    predicted: str = ""
    probabilities: Dict[str, float] = field(default_factory=dict)
    top: Tuple[str, ...] = ()
    rank: Optional[float] = None
    pool: int = 0
    evidence: float = 0.0
    chance: float = 0.0
    supported: bool = False
    refused: str = ""
    p_content: float = 1.0
    p_category: float = 1.0
    p_groups: Dict[str, float] = field(default_factory=dict)
    unknown: Tuple[str, ...] = ()
    p_motion: float = 1.0
    p_signal: Optional[float] = None
    p_agreement: Optional[float] = None
    plausible: Tuple[str, ...] = ()
    null: str = ""
    claim: Optional[float] = None
    shown: int = 1
    average_predicted: Optional[str] = None
    average_rank: Optional[float] = None
    shift: Optional[float] = None
    spread: Optional[float] = None
    stimulus: Optional[str] = None
    condition: Optional[str] = None
    onset_s: float = 0.0


@dataclass(frozen=True)
class CandidateScore(Message):
    """Which of the pictures that were announced with a trial (`candidates`) fits its response best.

    Sent after each `Score` of such a trial. An encoder, which the session's bundle carries, predicts the response to
    each picture.

    Attributes
    ----------
    agreement : dict of str to dict of str to float
        Correlation of what is predicted of each candidate with the response, by region and candidate, over the voxels
        that select; region ``all``: over all that do.
    chosen : str
        The candidate that fits best; empty where none can be chosen.
    margin : float
        Its agreement less that of the next best.
    p_decoy : float
        How often a picture that is no candidate would fit as well as the chosen one, if so many were drawn as there are
        candidates; 1 where no others are known.
    judged : dict of str to float
        Agreement of the chosen picture by region over the voxels that judge, which had no part in the choice.
    unknown : tuple of str
        Candidates that the encoder has no prediction of.
    refused : str
        Why no candidate is chosen; empty where one is.
    """

    agreement: Dict[str, Dict[str, float]] = field(default_factory=dict)
    chosen: str = ""
    margin: float = 0.0
    p_decoy: float = 1.0
    judged: Dict[str, float] = field(default_factory=dict)
    unknown: Tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Caption(Message):
    """A sentence decoded from the beta.

    Attributes
    ----------
    text : str
        The sentence.
    shown : int
        Trials of the stimulus so far of whose mean beta it is made (``decode.average_repeats``); 1: of this one alone.
    """

    text: str = ""
    shown: int = 1


@dataclass(frozen=True)
class Preview(Message):
    """What the picture of the same beta is begun from: blurry, and there before it. Some packs have none.

    Attributes
    ----------
    image : bytes
        The encoded picture, as a file holds it.
    format : str
        ``"jpeg"``, ``"webp"`` or ``"png"``, as the daemon's settings say.
    width, height : int
        Pixels.
    color_space : str
        ``"sRGB"``.
    shown : int
        Trials of the stimulus so far of whose mean beta it is made (``decode.average_repeats``); 1: of this one alone.
    """

    image: bytes = b""
    format: str = ""
    width: int = 0
    height: int = 0
    color_space: str = ""
    shown: int = 1


@dataclass(frozen=True)
class Reconstruction(Message):
    """A picture decoded from the beta.

    Attributes
    ----------
    image : bytes
        The encoded picture, as a file holds it.
    format : str
        ``"jpeg"``, ``"webp"`` or ``"png"``, as the daemon's settings say.
    width, height : int
        Pixels.
    color_space : str
        ``"sRGB"``.
    shown : int
        Trials of the stimulus so far of whose mean beta it is made (``decode.average_repeats``); 1: of this one alone.
    """

    image: bytes = b""
    format: str = ""
    width: int = 0
    height: int = 0
    color_space: str = ""
    shown: int = 1


@dataclass(frozen=True)
class Prediction(Message):
    """What a decoder says of one volume.

    Sent once for each volume that a trial could be decoded of, in the order of the volumes, and only by packs that
    predict; `invalid` says why there are no values.

    Attributes
    ----------
    values : dict of str to float
        By name; what they are is the pack's to say.
    late_s : float
        Since the file of the volume was complete, seconds.
    """

    values: Dict[str, float] = field(default_factory=dict)
    late_s: float = 0.0


@dataclass(frozen=True)
class StimulusMatch(Message):
    """How well a volume's parcels match what an encoding model predicts of the film at that moment.

    Sent once for each volume from the announcement of a film to the end of its run; `invalid` says why there is none.
    It is the match of stimulus and brain, and no measure of attention.

    Attributes
    ----------
    film : str
        Name of the film, as announced.
    correlation : float
        Of this volume's parcels with their prediction, over parcels; noisy.
    z : float
        Match over the window: distance from the mean of decoys, other times of the film 20 s and more away, in their
        standard deviations.
    rank : float
        Share of the decoys that match worse; .5 is chance.
    window : int
        Volumes that `z` and `rank` rest on.
    networks : dict of str to float
        `z` by the parcels of each functional network alone.
    parcels : int
        How many are compared.
    calibrated : bool
        Whether an earlier film of the session has taught scales and noise.
    offset_s : float or None
        By how much the film began later than announced, as estimated once, seconds; None before that.
    claim : float
        Evidence that the participant follows the film: 20 or more may be claimed whenever one looks, and stays.
    asks : str
        What the protocol's rule asks of the film from here on, as it is not followed: ``pause`` or ``switch``; empty:
        nothing. It holds until a film is announced anew.
    next_film : str
        The film to show instead, with ``switch``.
    """

    film: str = ""
    correlation: float = 0.0
    z: float = 0.0
    rank: float = 0.5
    window: int = 0
    networks: Dict[str, float] = field(default_factory=dict)
    parcels: int = 0
    calibrated: bool = False
    offset_s: Optional[float] = None
    claim: float = 1.0
    asks: str = ""
    next_film: str = ""


@dataclass(frozen=True)
class Feedback(Message):
    """What a participant is to be shown after a volume or a trial: the score of the settings' section ``[feedback]``.

    Of regions it is sent once for each volume, those that did not come included; of a category once for each revision
    of a decoded trial, before its `Score`. `volume` says which volume it rests on, ``stages["total"]`` how late it is,
    and `invalid` why there is nothing new to show.

    Attributes
    ----------
    score : str
        ``region``, ``difference``, ``connectivity``, ``category``, ``two_alternative``, ``retrieval`` or
        ``similarity``.
    regions : tuple of str
        That it is about.
    target : str
        The category, candidate or picture that it is about.
    unit : str
        ``raw``: percent signal change, Fisher's z of a correlation, a probability or a cosine. ``z``: standard
        deviations of the baseline.
    state : str
        ``baseline``: the run's baseline is being taken, nothing is to be shown. ``shown``: a new value. ``held``: go on
        showing the last one.
    raw : float or None
        The score as it came, without baseline and smoothing.
    value : float or None
        Against the baseline, smoothed; None before there is one.
    level : float or None
        Place of `value` between the bounds of the display, 0 to 1, clipped.
    step : int or None
        The same in steps, 0 to `steps`.
    steps : int
        Of the display.
    threshold : float or None
        Value from which the score counts as reached.
    reached : bool or None
        Whether `value` is; None without a threshold or a value.
    """

    score: str = ""
    regions: Tuple[str, ...] = ()
    target: str = ""
    unit: str = "raw"
    state: str = "held"
    raw: Optional[float] = None
    value: Optional[float] = None
    level: Optional[float] = None
    step: Optional[int] = None
    steps: int = 0
    threshold: Optional[float] = None
    reached: Optional[bool] = None


@dataclass(frozen=True)
class Calibration(Message):
    """Progress of calibration.

    Attributes
    ----------
    trials : int
        Collected so far.
    percentile : float or None
        Held-out mean percentile rank of the stimulus shown, .5 is chance; None before there are enough trials.
    interval : tuple of float
        Its 95 % interval.
    p_value : float or None
        How often shuffled labels do as well.
    top1, top1_chance : float or None
        Share of trials whose stimulus comes first among those held out with it, and how many would by chance.
    top1_interval : tuple of float
        95 % interval of the former.
    two_way : float or None
        Share of pairs of trials whose two stimuli are matched with them rightly, .5 is chance.
    two_way_interval : tuple of float
        Its 95 % interval.
    ceiling : float or None
        Percentile rank of a decoder that knew each response exactly, from stimuli that were repeated.
    ceiling_interval : tuple of float
        Its 95 % interval.
    ahead_min : tuple of float
        Minutes from now for which the percentile rank is projected, as fast as trials have come so far.
    ahead_trials : tuple of int
        Trials by then.
    projected, projected_low, projected_high : tuple of float
        Percentile rank that is expected by then, and its 80 % interval.
    advice : str
        ``"go on"``, ``"enough"``, ``"no signal"``, or empty where it is too early to tell.
    why : str
        The reason, in a line.
    note : str
        What goes on, for the page.
    """

    trials: int = 0
    percentile: Optional[float] = None
    interval: Tuple[float, ...] = ()
    p_value: Optional[float] = None
    top1: Optional[float] = None
    top1_chance: Optional[float] = None
    top1_interval: Tuple[float, ...] = ()
    two_way: Optional[float] = None
    two_way_interval: Tuple[float, ...] = ()
    ceiling: Optional[float] = None
    ceiling_interval: Tuple[float, ...] = ()
    ahead_min: Tuple[float, ...] = ()
    ahead_trials: Tuple[int, ...] = ()
    projected: Tuple[float, ...] = ()
    projected_low: Tuple[float, ...] = ()
    projected_high: Tuple[float, ...] = ()
    advice: str = ""
    why: str = ""
    note: str = ""


@dataclass(frozen=True)
class Fault(Message):
    """A part is broken.

    Faults of one part and `kind` tell of one trouble. Once it is mended the last of them comes with `over` set;
    a trouble that cannot be mended in this session stays.

    Attributes
    ----------
    part : str
        What is broken, for example ``"decode"`` or ``"disk"``.
    kind : str
        Tells troubles of one part apart.
    reason : str
        What was expected and what came.
    degraded : str
        What is missing until it is mended.
    remedy : str
        What to do.
    over : bool
        It is mended.
    """

    part: str = ""
    kind: str = ""
    reason: str = ""
    degraded: str = ""
    remedy: str = ""
    over: bool = False


@dataclass(frozen=True)
class Heartbeat(Message):
    """Sent every `every_s` seconds: the daemon lives.

    Attributes
    ----------
    lag : int
        Inputs that wait to be estimated.
    predict_lag : int
        Volumes that wait for their `Prediction`.
    superseded : int
        Betas that a newer one of the same trial replaced before they were decoded.
    rejected : int
        Requests that were refused.
    strangers : int
        Connections that ended without a word of this protocol, or without a key that holds.
    unsent : int
        Messages that wait for the disk, as it refuses what they rest on (``publish.send = "after_sync"``).
    uptime_s : float
        Since the daemon started, seconds.
    every_s : float
        Time between heartbeats, seconds.
    decode_ms : dict of str to float
        Median over the latest betas of each decoding stage, milliseconds.
    gpu_bytes : int or None
        GPU memory that the decode worker holds; None without a GPU.
    worker_restarts : int
        How often the decode worker had to be replaced.
    fallbacks : tuple of str
        What of the decoder runs otherwise than it was to, and so more slowly, and why, in words.
    last : dict of str to int
        `seq` of the latest message of each topic, so that it is known when one was missed.
    """

    lag: int = 0
    predict_lag: int = 0
    superseded: int = 0
    rejected: int = 0
    strangers: int = 0
    unsent: int = 0
    uptime_s: float = 0.0
    every_s: float = 1.0
    decode_ms: Dict[str, float] = field(default_factory=dict)
    gpu_bytes: Optional[int] = None
    worker_restarts: int = 0
    fallbacks: Tuple[str, ...] = ()
    last: Dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Other(Message):
    """A message of a topic that this client does not know.

    Attributes
    ----------
    topic : str
        Its name.
    fields : dict of str to object
        All that it says beyond the header; arrays in them are numpy's where that is installed, else `Array`.
    """

    topic: str = ""
    fields: Dict[str, Any] = field(default_factory=dict)


TOPICS: Dict[str, Type[Message]] = {
    kind.__name__.lower(): kind
    for kind in (
        Session, Run, Volume, Skipped, Beta, Embedding, Caption, Preview, Reconstruction, Score, Prediction,
        CandidateScore, StimulusMatch, Feedback, Calibration, Fault, Heartbeat,
    )
}  # fmt: skip


_HEADER = frozenset(f.name for f in fields(Message))
_TOPIC = re.compile(r"[a-z][a-z0-9_]*\Z")
_REFUSALS = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


def pack(message: Message) -> Tuple[bytes, bytes]:
    """Return the two frames of a message."""
    topic, values = topic_of(message), asdict(message)
    if isinstance(message, Other):
        del values["topic"]
        values.update(values.pop("fields"))
    return topic.encode(), msgpack.packb({"v": VERSION, "topic": topic, **values})


def topic_of(message: Message) -> str:
    """Return the topic a message belongs to."""
    return message.topic if isinstance(message, Other) else type(message).__name__.lower()


def message_of(topic: str, values: Dict[str, Any]) -> Message:
    """Return a message of a topic: of its class, without fields that this does not know; `Other` if there is none."""
    kind = TOPICS.get(topic)
    if kind is not None:
        known = {f.name for f in fields(kind)}
        return kind(**{name: value for name, value in values.items() if name in known})
    header = {name: value for name, value in values.items() if name in _HEADER}
    return Other(**header, topic=topic, fields={n: v for n, v in values.items() if n not in _HEADER})


def unpack(topic: bytes, payload: bytes) -> Message:
    """Turn the two frames of a message into its type; into `Other` if the topic is not known here.

    Raises
    ------
    WireError
        No topic, other version, malformed bytes or missing fields.
    """
    try:
        name = topic.decode()
        values = msgpack.unpackb(payload)
    except (UnicodeDecodeError, ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not a message of this protocol: {error!r}") from None
    if not _TOPIC.match(name):
        raise WireError(f"expected a topic, got {name!r}")
    if not isinstance(values, dict) or "v" not in values:
        raise WireError(f"expected a map of version {VERSION}, got none with a version")
    if values["v"] != VERSION:
        raise WireError(
            f"expected version {VERSION} of the wire, got {values['v']!r}: take the client.py of the daemon"
        )
    del values["v"]
    values.pop("topic", None)
    if not isinstance(values.get("session"), str):
        raise WireError("message without a session")
    if not isinstance(values.get("seq"), (int, type(None))):
        raise WireError("message with a sequence number that is none")
    if name in TOPICS:
        return message_of(name, {key: _value(value) for key, value in values.items()})
    try:
        return message_of(name, {key: _numeric(value) for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise WireError(f"message with an array that is none: {error}") from None


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict) and value.keys() == {"dtype", "shape", "data"}:
        return Array(value["dtype"], tuple(value["shape"]), value["data"])
    return value


def _numeric(value: Any) -> Any:
    """Turn the arrays of a value of unknown meaning into numpy's, where that is installed, wherever they are in it."""
    value = _value(value)
    if isinstance(value, dict):
        return {name: _numeric(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_numeric(one) for one in value)
    if isinstance(value, Array):
        try:
            import numpy
        except ImportError:
            return value
        return numpy.frombuffer(value.data, value.dtype).reshape(value.shape)
    return value


def _token() -> str:
    return uuid.uuid4().hex


def _left_ms(deadline: float) -> int:
    """Milliseconds until a time of `time.monotonic`; 0 when it is over."""
    return max(0, int(1000 * (deadline - time.monotonic())) + 1)


def _plain(value: Any) -> Any:
    """Turn what numpy counts and measures in into plain numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot be sent: {value!r}")


def read_key(path: str) -> Dict[str, str]:
    """Read the key that ``rtdecode keys new`` made for this client.

    Raises
    ------
    ValueError
        The file is none.
    OSError
        It cannot be read.
    """
    with open(path, encoding="utf-8") as stream:
        try:
            found = json.load(stream)
            if found["rtdecode"] != "client key" or found["v"] != 1:
                raise KeyError("rtdecode")
            return {name: str(found[name]) for name in ("name", "role", "server", "public", "secret")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a client's file of `rtdecode keys new`, got another: {error!r}"
            ) from None


class Client:
    """Receives the stream and sends requests. Not thread-safe: one client a thread.

    It may outlive sessions: messages of the next one follow those of the last, complete from its first message on;
    `session` tells which one it is.

    Parameters
    ----------
    stream, requests : str
        Addresses of the daemon. Without `stream` (an empty text) it only asks.
    topics : sequence of str or None
        Topics to receive, also such as this file does not know; all by default.
    timeout_s : float
        How long a request waits for its answer.
    key : str or None
        File of ``rtdecode keys new``, where the daemon asks for keys.

    Attributes
    ----------
    session : str or None
        Identifier of the session that the latest message is of; None before the first.
    silent : bool
        Nothing has come for a second or, where heartbeats are slower, two of their periods. As of the last call of
        `receive` or `pending`.
    unreadable : int
        Messages that were left out because they are not of this protocol.
    """

    def __init__(
        self,
        stream: str = STREAM,
        requests: str = REQUESTS,
        *,
        topics: Optional[Sequence[str]] = None,
        timeout_s: float = 10.0,
        key: Optional[str] = None,
    ) -> None:
        for topic in topics or ():
            if not _TOPIC.match(topic):
                raise ValueError(f"topics: expected names such as {', '.join(TOPICS)}, got {topic!r}")
        self._key = None if key is None else read_key(key)
        self._context = zmq.Context()
        self._stream, self._requests = stream, requests
        self._topics = None if topics is None else tuple(topics)
        self._sub = self._tuned_in()
        self._dealer: Optional["zmq.Socket[bytes]"] = None
        self._refused: Optional["zmq.Socket[bytes]"] = None  # tells why the daemon ended a connection for requests
        self._heard = time.monotonic()
        self._silent_s = SILENT_S
        self._tune_in_again = 0.0
        self.silent = False
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._ahead: Optional[float] = None  # the daemon's monotonic clock less this machine's
        self._last: Dict[str, int] = {}
        self._whole = False  # not even the first message of a topic may be missed
        self._came: Deque[Message] = deque()  # in the order of the socket
        self._ready: Deque[Message] = deque()  # in that of `seq`, without gaps
        self._ask_again = 0.0
        self.session: Optional[str] = None
        self.unreadable = 0

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets."""
        self._sub.close()
        self._hang_up()
        self._context.term()

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        made = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        if self._key is not None:
            made.setsockopt(zmq.CURVE_SERVERKEY, self._key["server"].encode())
            made.setsockopt(zmq.CURVE_PUBLICKEY, self._key["public"].encode())
            made.setsockopt(zmq.CURVE_SECRETKEY, self._key["secret"].encode())
        return made

    def _tuned_in(self) -> "zmq.Socket[bytes]":
        sub = self._socket(zmq.SUB)
        sub.setsockopt(zmq.RCVHWM, 0)
        for topic in {""} if self._topics is None else {*self._topics, "heartbeat"}:  # which tell of a new session
            sub.setsockopt(zmq.SUBSCRIBE, topic.encode())
        if self._stream:
            sub.connect(self._stream)
        return sub

    def _dial(self) -> "zmq.Socket[bytes]":
        if self._dealer is None:
            self._dealer = self._socket(zmq.DEALER)
            self._refused = self._dealer.get_monitor_socket(_REFUSALS)
            self._dealer.connect(self._requests)
        return self._dealer

    def _hang_up(self) -> str:
        """Close the socket for requests, with what it has not sent yet; say why no answer may have come."""
        dealer, refused, self._dealer, self._refused = self._dealer, self._refused, None, None
        if dealer is None or refused is None:
            return ""
        seen = 0
        while refused.poll(0):
            seen = int.from_bytes(refused.recv_multipart()[0][:2], "little")
        dealer.disable_monitor()
        refused.close()
        dealer.close()
        if seen == 0:
            return "is the daemon running?"
        if self._key is None:
            return "what listens there does not take it; does the daemon ask for a key (rtdecode keys new)?"
        if seen == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return f"the key {self._key['name']} is not known there: was it revoked, or is it of another daemon?"
        return "what listens there does not take the key: is it of this daemon, and does the daemon ask for keys?"

    # receiving ------------------------------------------------------------------------------------------

    def receive(self, timeout_s: float) -> Optional[Message]:
        """Return the next message, or None if none came within `timeout_s`.

        A gap in `seq` is filled from the daemon's journal before newer messages are handed out, so that each topic
        is complete and in order from the first message on. Where the daemon does not answer, it is asked again.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._sort()
            if self._ready:
                return self._ready.popleft()
            left = deadline - time.monotonic()
            came = self._sub.poll(int(1000 * max(0.0, min(left, SILENT_S))))
            self._listen(bool(came))
            if came:
                self._drain()
            elif left <= SILENT_S:
                return None

    def _listen(self, came: bool) -> None:
        """Say so when nothing comes any more, and when something comes again."""
        now = time.monotonic()
        quiet_s = now - self._heard
        if came:
            if self.silent:
                _log.warning("%s: messages come again, after %.1f s; missed ones are asked for", self._stream, quiet_s)
            self._heard, self.silent = now, False
        elif self._stream and quiet_s > self._silent_s and now >= self._tune_in_again:
            if not self.silent:
                self.silent = True
                _log.warning(
                    "%s: nothing has come for %.1f s, no heartbeat either; still trying", self._stream, quiet_s
                )
            self._tune_in_again = now + GAP_TIMEOUT_S
            self._sub.close()  # ZeroMQ makes broken connections again, but not one whose key was refused
            self._sub = self._tuned_in()

    def messages(self, timeout_s: Optional[float] = None) -> Iterator[Message]:
        """Yield messages as they come; stop after `timeout_s` without any, heartbeats included (None: never)."""
        while True:
            message = self.receive(1.0 if timeout_s is None else timeout_s)
            if message is not None:
                yield message
            elif timeout_s is not None:
                return

    def pending(self) -> bool:
        """Whether `receive` has a message to hand out at once."""
        came = bool(self._sub.poll(0))
        self._listen(came)
        if not self._ready and came:
            self._drain()
        self._sort()
        return bool(self._ready)

    def catch_up(self) -> None:
        """Take everything published before this client came, in its order; `receive` then hands it out first.

        Raises
        ------
        RequestError
            The daemon publishes nothing under one of the names in `topics`.
        TimeoutError
            No answer in time: is the daemon running?
        """
        for topic in self._numbered():
            self._last.setdefault(topic, -1)
        self._whole = True
        for message in self._missed(self._last):
            self._accept(message)

    def _numbered(self) -> List[str]:
        """Return the topics of which nothing may be missed, as far as they have messages."""
        if self._topics is None:
            return [topic for topic, _ in self._request("snapshot", {}, GAP_TIMEOUT_S)["messages"]]
        return [topic for topic in self._topics if topic != "heartbeat"]

    def _drain(self) -> None:
        """Take what has come to the socket; a heartbeat does not wait for a gap that cannot be filled now."""
        while self._sub.poll(0):
            frames = self._sub.recv_multipart()
            try:
                message = unpack(*frames)
            except (TypeError, WireError):
                self.unreadable += 1
                continue
            if isinstance(message, Heartbeat):
                self._silent_s = max(SILENT_S, 2 * message.every_s)
            if isinstance(message, Heartbeat) and time.monotonic() < self._ask_again:
                self._hand_out(message)
            else:
                self._came.append(message)

    def _sort(self) -> None:
        while self._came and time.monotonic() >= self._ask_again:
            try:
                self._accept(self._came[0])
            except (TimeoutError, RequestError):  # the message that tells of a gap stays, and tells of it again
                self._ask_again = time.monotonic() + GAP_TIMEOUT_S
            except (TypeError, WireError):
                self.unreadable += 1
                self._came.popleft()
            else:
                self._came.popleft()

    def _accept(self, message: Message) -> None:
        if self.session is not None and message.session != self.session:
            start = dict.fromkeys(self._numbered(), -1)
            missed = [m for m in self._missed(start, known=False) if m.session == message.session]
            self.session, self._last, self._whole = message.session, start, True
            for earlier in missed:
                self._accept(earlier)
        self.session = message.session
        topic, seq = topic_of(message), message.seq
        if isinstance(message, Heartbeat):
            for name, latest in message.last.items():
                self._fill(name, latest + 1)
        elif seq is not None:
            if seq <= self._last.get(topic, -1):
                return
            self._fill(topic, seq)
            self._last[topic] = seq
        self._hand_out(message)

    def _fill(self, topic: str, end: int) -> None:
        """Hand out what was missed of a topic before the message `end`."""
        if not self._wants(topic):
            return
        last = self._last.get(topic, -1 if self._whole else None)
        if last is None or end <= last + 1:
            return
        for earlier in self._missed({topic: last}):
            if earlier.session == self.session and earlier.seq is not None and last < earlier.seq < end:
                self._hand_out(earlier)
        self._last[topic] = end - 1

    def _wants(self, topic: str) -> bool:
        return self._topics is None or topic in self._topics

    def _hand_out(self, message: Message) -> None:
        if self._wants(topic_of(message)):
            self._ready.append(message)

    def _missed(self, last: Dict[str, int], *, known: bool = True) -> List[Message]:
        """Return what was published of each topic after the last that is known, in the daemon's order.

        `known` refuses a topic that the daemon does not know; otherwise it counts as one without messages.
        """
        found: List[Tuple[int, str, bytes]] = []
        for topic, seq in last.items():
            try:
                found += self._pages(topic, seq + 1, GAP_TIMEOUT_S)
            except RequestError as error:
                if known or error.code != "topic":
                    raise
        messages = []
        for _, topic, payload in sorted(found):
            try:
                messages.append(unpack(topic.encode(), payload))
            except (TypeError, WireError):
                self.unreadable += 1
        return messages

    # requests -------------------------------------------------------------------------------------------

    def request(self, request: str, **arguments: Any) -> Dict[str, Any]:
        """Send a request and return its answer.

        Numbers may be numpy's. A request that was not answered in time is not carried out later.

        Raises
        ------
        RequestError
            The daemon refused it.
        TimeoutError
            No answer in time: is the daemon running?
        """
        return self._request(request, arguments, self._timeout_s)

    def _request(self, request: str, arguments: Dict[str, Any], timeout_s: float) -> Dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            if self._ahead is None:
                answer = self._ask("ping", {}, deadline)
                self._ahead = float(answer["t_mono"]) - time.monotonic()
            expires = deadline - 0.1 * timeout_s + self._ahead  # what is left is for the answer's way
            try:
                return self._ask(request, {**arguments, "expires": expires}, deadline)
            except RequestError as error:
                if error.code == "late":
                    if time.monotonic() >= deadline:
                        raise TimeoutError(str(error)) from None
                    self._ahead = None  # the daemon runs on another clock than before
                elif error.code == "busy":
                    if time.monotonic() + 0.2 > deadline:
                        raise TimeoutError(str(error)) from None
                    time.sleep(0.2)
                else:
                    raise

    def _ask(self, request: str, arguments: Dict[str, Any], deadline: float) -> Dict[str, Any]:
        number = next(self._ids)
        content = {"v": VERSION, "id": number, "request": request, **arguments}
        dealer, payload = self._dial(), msgpack.packb(content, default=_plain)
        # A socket that was refused has nowhere to send to: without a limit it would wait for ever.
        try:
            sent = bool(dealer.poll(_left_ms(deadline), zmq.POLLOUT)) and not dealer.send(payload, zmq.DONTWAIT)
        except zmq.Again:  # refused just now
            sent = False
        while sent and dealer.poll(_left_ms(deadline)):
            answer: Dict[str, Any] = msgpack.unpackb(dealer.recv())
            if answer.get("id") not in (number, None):
                continue
            if not answer.get("ok"):
                raise RequestError(str(answer.get("error")), str(answer.get("code", "")))
            return answer
        raise TimeoutError(f"no answer to {request!r} in time: {self._hang_up()}")

    def event(self, **what: Any) -> List[str]:
        """Announce ``kind="run_start"`` (run, expected_volumes, t_r_s), ``"trial"`` (run, trial, onset_s, duration_s,
        stimulus, condition), ``"film"`` (run, stimulus, onset_s) or ``"run_end"`` (run, volumes). Onsets count from the
        acquisition of volume 0 of the run; that of a film holds from now on: announce it again after a pause.
        A `t_r_s` other than that of the volumes is a `Fault`. Until its beta is final, a trial that was announced is
        corrected by ``"amend"`` (run, trial, and what was wrong) and withdrawn by ``"cancel"`` (run, trial).

        Returns
        -------
        list of str
            What is doubtful about it, for example a stimulus that the decoder does not know; empty if nothing is.
            A trial that was accepted gets a final `Score` or, while the session is calibrated, `Beta`.
        """  # noqa: D205
        return list(self.request("event", **what).get("warnings", ()))

    def mode(
        self,
        mode: str,
        bundle: Optional[str] = None,
        last_run: Optional[int] = None,
        *,
        session: Optional[str] = None,
    ) -> None:
        """Switch to ``"decode"`` with the ParticipantBundle in folder `bundle`, which may be another than before.

        Parameters
        ----------
        mode, bundle : str
        last_run : int or None
            The calibration is over with this run: later ones teach it nothing. None: it goes on as planned.
        session : str or None
            The session that is meant, as messages name it: another one refuses. None: whichever runs.
        """
        self.request("mode", mode=mode, bundle=bundle, last_run=last_run, session=session)

    def recalibrate(
        self,
        runs: Optional[int] = None,
        *,
        reason: str = "",
        token: Optional[str] = None,
        session: Optional[str] = None,
    ) -> Dict[str, Any]:
        """Calibrate again from now on: trials up to now no longer count; ``rtdecode calibrate`` collects those to come.

        Parameters
        ----------
        runs : int or None
            How many, an open one included; None: as the settings say.
        reason, token : str
            As of `control`.
        session : str or None
            As of `mode`.

        Returns
        -------
        dict
            ``run`` and ``onset_s`` from which trials calibrate, and the ``last_run`` that does.
        """
        named = {"reason": reason, "token": token or _token(), "session": session}
        answer = self.request("mode", mode="calibrate", runs=runs, **named)
        return {name: answer[name] for name in ("run", "onset_s", "last_run")}

    def control(self, command: str, *, reason: str = "", token: Optional[str] = None, **what: Any) -> None:
        """Steer the session; a command is kept in its journal and holds after a crash as well.

        Parameters
        ----------
        command : str
            ``"pause"`` and ``"resume"`` decoding; ``"feedback"`` (target, regions, threshold, half_life_s: those given
            change); ``"bad_run"`` (run), whose trials do not count; ``"stop"`` the session in order.
        reason : str
            Why, in words.
        token : str or None
            Names the command: asked again with the same token, it is not carried out twice. Give one of your own to ask
            again after a `TimeoutError`; None makes one.
        **what
            As listed.

        Raises
        ------
        RequestError
            It makes no sense now; the text says why.
        TimeoutError
            No answer in time. It may have been carried out: ask again with the same token.
        """
        self.request("control", command=command, reason=reason, token=token or _token(), **what)

    def calibration(self, **status: Any) -> None:
        """Publish the progress of a calibration to all clients; fields of `Calibration`, `session` as of `mode`."""
        self.request("calibration", **status)

    def ping(self) -> Tuple[float, float]:
        """Return (offset, round trip) in seconds: daemon clock = this machine's clock + offset."""
        sent = time.time()
        answer = self.request("ping")
        received = time.time()
        return float(answer["t_wall"]) - (sent + received) / 2, received - sent

    def snapshot(self) -> List[Message]:
        """Return the last message of each topic."""
        return [unpack(topic.encode(), payload) for topic, payload in self.request("snapshot")["messages"]]

    def replay(self, topic: str, since_seq: int) -> List[bytes]:
        """Return the payloads of `topic` from `since_seq` on."""
        return [payload for _, _, payload in self._pages(topic, since_seq, self._timeout_s)]

    def _pages(self, topic: str, since_seq: int, timeout_s: float) -> Iterator[Tuple[int, str, bytes]]:
        """Yield place in the daemon's journal, topic and payload; each page may take `timeout_s`."""
        more = True
        while more:
            answer = self._request("replay", {"topic": topic, "since_seq": since_seq}, timeout_s)
            for place, payload in zip(answer["places"], answer["messages"]):  # noqa: B905 - Python 3.8
                yield place, topic, payload
            since_seq, more = answer["next_seq"], answer["more"]


class Listener:
    """Calls a function with each message as it comes, on a thread of its own.

    The function must not wait long. What it raises is logged, and the next message comes all the same. To ask the
    daemon for something, use a `Client` beside it.

    Parameters
    ----------
    call : callable
        Gets each message.
    stream, requests, topics, key
        As of `Client`.
    silence : callable, optional
        Called with True when nothing comes any more, with False when something comes again.
    """

    def __init__(
        self,
        call: Callable[[Message], object],
        stream: str = STREAM,
        requests: str = REQUESTS,
        *,
        topics: Optional[Sequence[str]] = None,
        key: Optional[str] = None,
        silence: Optional[Callable[[bool], object]] = None,
    ) -> None:
        self._call, self._silence = call, silence
        self._stop = threading.Event()
        client = Client(stream, requests, topics=topics, key=key)
        self._thread = threading.Thread(target=self._follow, args=(client,), name="rtdecode-listener", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Call no more; wait until the last call is over."""
        self._stop.set()
        self._thread.join()

    def _follow(self, client: Client) -> None:
        silent = False
        with client:
            while not self._stop.is_set():
                message = client.receive(0.1)
                if client.silent != silent:
                    silent = client.silent
                    if self._silence is not None:
                        self._try(self._silence, silent)
                if message is not None:
                    self._try(self._call, message)

    def _try(self, call: Callable[[Any], object], told: Any) -> None:
        try:
            call(told)
        except Exception:
            _log.exception("%r failed on %r", call, told)


class AsyncClient:
    """A `Client` for asyncio: nothing that it does holds up the loop.

    >>> async with AsyncClient(topics=["score"]) as client:      # doctest: +SKIP
    ...     await client.event(kind="run_start", run=1)
    ...     async for message in client.messages():
    ...         print(message)

    Parameters
    ----------
    stream, requests, topics, timeout_s, key
        As of `Client`.

    Attributes
    ----------
    silent : bool
        Nothing has come for a second.
    """

    def __init__(
        self,
        stream: str = STREAM,
        requests: str = REQUESTS,
        *,
        topics: Optional[Sequence[str]] = None,
        timeout_s: float = 10.0,
        key: Optional[str] = None,
    ) -> None:
        self._addresses = (stream, requests)
        self._topics, self._timeout_s, self._key = topics, timeout_s, key
        self.silent = False

    async def __aenter__(self) -> "AsyncClient":
        loop = asyncio.get_running_loop()
        self._came: "asyncio.Queue[Message]" = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "rtdecode-asker")
        self._asker = await loop.run_in_executor(self._thread, self._connect)
        self._listener = Listener(
            lambda message: loop.call_soon_threadsafe(self._came.put_nowait, message),
            *self._addresses,
            topics=self._topics,
            key=self._key,
            silence=lambda silent: loop.call_soon_threadsafe(setattr, self, "silent", silent),
        )
        return self

    def _connect(self) -> Client:
        return Client("", self._addresses[1], timeout_s=self._timeout_s, key=self._key)

    async def __aexit__(self, *exc: object) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._listener.close)
        await loop.run_in_executor(self._thread, self._asker.close)
        self._thread.shutdown()

    async def receive(self, timeout_s: Optional[float] = None) -> Optional[Message]:
        """Return the next message; None if none came within `timeout_s` (None: wait for one)."""
        try:
            return await asyncio.wait_for(self._came.get(), timeout_s)
        except asyncio.TimeoutError:
            return None

    async def messages(self) -> AsyncIterator[Message]:
        """Yield messages as they come, for ever."""
        while True:
            yield await self._came.get()

    async def request(self, request: str, **arguments: Any) -> Dict[str, Any]:
        """Do as `Client.request`."""
        ask = asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: self._asker.request(request, **arguments)
        )
        return await ask

    async def event(self, **what: Any) -> List[str]:
        """Do as `Client.event`."""
        return list((await self.request("event", **what)).get("warnings", ()))
