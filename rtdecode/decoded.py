"""What is decoded: each kind and each of its fields is declared here, once.

From a declaration follow the worker's frame, the topic and fields of the message, what is published but once a
revision, the columns of the table of decoded trials, and the figures on the page. A new kind is a class here, in
`TRIAL_KINDS`, and the line in `rtdecode.decode.decoder` that computes it; clients get it as `client.Other` until
`client.py` has a class of that name.
"""

from __future__ import annotations

import typing
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Told:
    """What a field of a kind is, and where it is told besides the stream.

    Attributes
    ----------
    what : str
        Description; the sidecar of the table repeats it.
    column : str or None
        Its column in the table of decoded trials; None: it has none.
    units : str or None
        Of the column.
    digits : int or None
        Decimals in the table; None: all.
    page : str or None
        Label under which the page lists it beside the evidence; None: the page does not list it, but may show it
        otherwise.
    streamed : bool
        Whether clients are told of it.
    """

    what: str
    column: str | None = None
    units: str | None = None
    digits: int | None = None
    page: str | None = None
    streamed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedPart:
    """One piece of what is decoded of a beta or a volume; its topic is the name of its class in lower case.

    A field that is a part itself becomes a message of its own, after that of the part which holds it.

    Attributes
    ----------
    stage : str
        Name of its time in ``stages`` of messages and ``decode_ms`` of heartbeats.
    absent_as : str
        How a pack that cannot make it names it (`Pipeline.absent`); empty where every pack can.
    tells_trial : bool
        Whether its message repeats onset, stimulus and condition of the trial.
    """

    stage: ClassVar[str]
    absent_as: ClassVar[str] = ""
    tells_trial: ClassVar[bool] = False


_Shown = Annotated[int, Told("Trials of the stimulus that it is made of the mean beta of; 1: of this one alone")]
_DEVIATIONS = "standard deviations of the calibration"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score(DecodedPart):
    """How well a decoded embedding fits the candidates."""

    stage: ClassVar[str] = "embed"
    tells_trial: ClassVar[bool] = True

    predicted: Annotated[str, Told("Category that the decoder names", column="predicted")]
    probabilities: Annotated[dict[str, float], Told("Calibrated probability of each category; they sum to one")]
    top: Annotated[tuple[str, ...], Told("Best candidates of the retrieval pool, best first (at most five)")]
    rank: Annotated[
        float | None,
        Told("Mid-rank of the shown stimulus in the pool, 1 is best; None where it is not known", column="rank"),
    ]
    pool: Annotated[int, Told("Number of candidates", column="pool")]
    posterior: Annotated[
        dict[str, float],
        Told("Probability of each candidate of the pool, where all are as likely beforehand", streamed=False),
    ]
    evidence: Annotated[
        float,
        Told(
            "Probability, learned from held-out calibration trials, that the named category is right; never above "
            "chance where calibration found no signal",
            column="evidence",
        ),
    ]
    chance: Annotated[float, Told("What guessing would give", column="chance")]
    supported: Annotated[
        bool,
        Told(
            "Whether the trial may be shown as decoded (1) or not (0): calibration found signal, content is there "
            "(p_content) and the response is no outlier (p_motion)",
            column="supported",
        ),
    ]
    refused: Annotated[str, Told("Why the trial is not supported; empty where it is", column="refused")]
    p_content: Annotated[
        float,
        Told(
            "How often a response without a picture in it looks at least as much like one with a picture",
            column="p_content",
            digits=4,
        ),
    ]
    p_category: Annotated[
        float,
        Told(
            "How often a response without a picture in it points at least as surely to a category",
            column="p_category",
            digits=4,
        ),
    ]
    p_groups: Annotated[
        dict[str, float],
        Told(
            "How often a response without a picture in it says as much of a token group, by its name; empty where the "
            "pack has only one"
        ),
    ]
    unknown: Annotated[
        tuple[str, ...],
        Told(
            "Of a supported trial: what of the picture is not, in a list: category, where p_category is above .05 and "
            "evidence below .8, and token groups, which picture and caption leave out where the pack can",
            column="unknown",
        ),
    ]
    p_motion: Annotated[
        float,
        Told(
            "How often a response of the calibration lies at least so far from the average one; low after a movement",
            column="p_motion",
            digits=4,
        ),
    ]
    p_signal: Annotated[
        float | None,
        Told(
            "How often rest looks at least as much like a response to a stimulus; None where calibration had no rest "
            "between trials",
            column="p_signal",
            digits=4,
        ),
    ]
    p_agreement: Annotated[
        float | None,
        Told(
            "How often another picture of the pool, which calibration never showed, fits at least as well as the one "
            "announced; None where none of the pool was announced",
            column="p_agreement",
            digits=4,
        ),
    ]
    plausible: Annotated[
        tuple[str, ...],
        Told(
            "Categories of which one is right in 90 % of trials, in a list; none where the response is an outlier",
            column="plausible",
        ),
    ]
    null: Annotated[str, Told("Which responses without a picture p_content and p_category rest on", column="null")]
    claim: Annotated[
        float | None,
        Told(
            "Evidence that this session decodes, as an e-value over its trials so far: 20 or more may be claimed at "
            "any time; the session adds it",
            column="claim",
        ),
    ] = None
    shown: Annotated[
        int,
        Told(
            "Trials of the stimulus so far, this one included, of whose mean beta the picture is made; 1: of this one "
            "alone",
            column="shown",
        ),
    ] = 1
    average_predicted: Annotated[
        str | None,
        Told(
            "Category that the decoder names from the mean beta; None where the stimulus was not shown before. No "
            "evidence is stated of it",
            column="average_predicted",
            page="averaged",
        ),
    ] = None
    average_rank: Annotated[
        float | None,
        Told("Mid-rank of the shown stimulus in the pool by the mean beta, 1 is best", column="average_rank"),
    ] = None
    shift: Annotated[
        float | None,
        Told(
            "Median over voxels of the distance of the betas before from the calibration's mean; the session adds it",
            column="shift",
            units=_DEVIATIONS,
            digits=3,
        ),
    ] = None
    spread: Annotated[
        float | None,
        Told(
            "Median over voxels of the standard deviation of the betas before; the session adds it",
            column="spread",
            units=_DEVIATIONS,
            digits=3,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding(DecodedPart):
    """Tokens decoded from one beta."""

    stage: ClassVar[str] = "embed"

    tokens: Annotated[
        NDArray[np.floating[Any]],
        Told(
            "Array of shape (t, d), float32 or float16: of a tiny pack as the ridge adapter gives them, shrunk toward "
            "the mean in proportion to its reliability; of MindEye2 as the backbone's projector does"
        ),
    ]
    components: Annotated[NDArray[np.float32], Told("Array of shape (k,): what the adapter predicts", streamed=False)]
    score: Score
    nearest: Annotated[
        Mapping[str, float],
        Told("Pictures of the session's pool that are most like the tokens and their cosines, best first"),
    ]
    unsearched: Annotated[str, Told("Why the session's pool named none; empty where it did, and without a pool")] = ""
    shown: _Shown = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CandidateScore(DecodedPart):
    """Which of the pictures that were announced with a trial fits its response best, by an encoder."""

    stage: ClassVar[str] = "candidates"

    agreement: Annotated[
        dict[str, dict[str, float]],
        Told(
            "Correlation of what is predicted of each candidate with the response, by region and candidate, over the "
            "voxels that select; region all: over all that do"
        ),
    ]
    chosen: Annotated[str, Told("The candidate that fits best; empty where none can be chosen", page="fits best")]
    margin: Annotated[float, Told("Its agreement less that of the next best")]
    p_decoy: Annotated[
        float,
        Told(
            "How often a picture that is no candidate would fit as well as the chosen one, if so many were drawn as "
            "there are candidates; 1 where no others are known",
            page="p of a decoy",
        ),
    ]
    judged: Annotated[
        dict[str, float],
        Told("Agreement of the chosen picture by region over the voxels that judge, which had no part in the choice"),
    ]
    unknown: Annotated[tuple[str, ...], Told("Candidates that the encoder has no prediction of")]
    refused: Annotated[str, Told("Why no candidate is chosen; empty where one is")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Caption(DecodedPart):
    """A sentence decoded from an embedding."""

    stage: ClassVar[str] = "caption"
    absent_as: ClassVar[str] = "caption"

    text: Annotated[str, Told("Decoded sentence", column="caption")]
    shown: _Shown = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture(DecodedPart):
    """A picture. Its message holds it encoded: see `rtdecode.publish.messages`."""

    image: Annotated[NDArray[np.uint8], Told("Array of shape (height, width, 3), sRGB")]
    shown: _Shown = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preview(Picture):
    """What a picture is begun from, blurry and early; packs that begin from nothing have none."""

    stage: ClassVar[str] = "preview"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reconstruction(Picture):
    """A picture decoded from an embedding."""

    stage: ClassVar[str] = "reconstruct"
    absent_as: ClassVar[str] = "picture"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction(DecodedPart):
    """What a decoder says of one volume; its message repeats run and volume, not a trial."""

    stage: ClassVar[str] = "predict"

    values: Annotated[Mapping[str, float], Told("What is predicted, by name; nan where nothing can be")]


TRIAL_KINDS: tuple[type[DecodedPart], ...] = (Embedding, Score, CandidateScore, Preview, Reconstruction, Caption)
"""What is decoded of a beta, in the order in which it is published."""
VOLUME_KINDS: tuple[type[DecodedPart], ...] = (Prediction,)
"""What is decoded of a volume."""


def kinds() -> dict[str, type[DecodedPart]]:
    """Return all kinds by topic."""
    return {topic_of(kind): kind for kind in (*TRIAL_KINDS, *VOLUME_KINDS)}


def topic_of(kind: type[DecodedPart]) -> str:
    """Return the topic that the messages of a kind are published on."""
    return kind.__name__.lower()


def told(kind: type[DecodedPart]) -> Mapping[str, Told]:
    """Return the fields of a kind and what is declared of each; fields that are parts themselves are left out."""
    return _declared(typing.cast(Hashable, kind))


@cache  # every message asks, and reading the declaration takes a millisecond
def _declared(kind: Any) -> Mapping[str, Told]:
    hints = typing.get_type_hints(kind, include_extras=True)
    notes = {field.name: getattr(hints[field.name], "__metadata__", ()) for field in fields(kind)}
    return MappingProxyType({name: one[0] for name, one in notes.items() if one})


def pieces(part: DecodedPart) -> Iterator[DecodedPart]:
    """Yield a part and those within it: each is a message of its own."""
    yield part
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, DecodedPart):
            yield from pieces(value)


def columns() -> dict[str, Told]:
    """Return the columns that decoded kinds have in the table of decoded trials, in their order."""
    every = (note for kind in TRIAL_KINDS for note in told(kind).values())
    return {note.column: note for note in every if note.column is not None}


def row(found: Iterable[DecodedPart]) -> list[object]:
    """Return the values of `columns` for what was decoded of a trial; None where there is none."""
    values: dict[str, object] = {}
    for part in found:
        for name, note in told(type(part)).items():
            value = getattr(part, name)
            if note.column is not None:
                values[note.column] = _cell(value, note.digits)
    return [values.get(column) for column in columns()]


def _cell(value: Any, digits: int | None) -> object:
    """Return a value as tables hold it: names in a list, yes as 1, a measured value rounded."""
    if isinstance(value, tuple):
        return ",".join(value) or None
    if isinstance(value, bool):
        return int(value)
    return value if digits is None or value is None else f"{value:.{digits}f}"


def figures(topic: str) -> dict[str, str]:
    """Return the fields of a topic's messages that the page lists, and the label of each."""
    kind = kinds().get(topic)
    every: Mapping[str, Told] = {} if kind is None else told(kind)
    return {name: note.page for name, note in every.items() if note.page is not None}
