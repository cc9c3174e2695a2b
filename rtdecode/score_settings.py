"""The settings' sections ``[film]`` and ``[feedback]``: scores that are followed while a session runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from rtdecode.sections import Count, NonNegative, Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmSettings:
    """Films that are shown, and what a brain that follows them is expected to do.

    Attributes
    ----------
    predictions : table of str to Path
        Folders of ``rtdecode encode`` by the name that the experiment announces a film with.
    parcels : str
        The label image of ``[estimate.parcels]`` that the predictions are about.
    window : int
        Volumes that a match rests on.
    """

    predictions: Mapping[str, Path] = field(default_factory=dict)
    parcels: str = ""
    window: Count = 20


def film_problems(settings: FilmSettings, parcels: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with films, given the names of the label images there are."""
    if settings.predictions and settings.parcels not in parcels:
        known = ", ".join(parcels) or "none"
        yield f"$.film.parcels: expected a label image of estimate.parcels ({known}), got {settings.parcels!r}"


PROBABILITIES = ("category", "two_alternative", "retrieval")
OF_TRIALS = (*PROBABILITIES, "similarity")
"""Scores of decoded trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackSettings:
    """A score for neurofeedback, told of every volume, or of every decoded trial.

    Attributes
    ----------
    score : {"none", "region", "difference", "connectivity", "category", "two_alternative", "retrieval", "similarity"}
        Of volumes: percent signal change of a region; of one less that of another; or how two go together, Fisher's z
        of their correlation over `window_s`. Of trials, without baseline and smoothing: the decoded probability of the
        category `target`; the same if only it and the category `foil` were possible; that of the candidate `target`
        among all of the retrieval pool; or the cosine of the decoded tokens and those of the picture `target` in the
        file ``decode.pool``.
    regions : tuple of str
        One or two names of ``[estimate.regions]``.
    target : str
        What a score of trials is about.
    foil : str
        The other category of ``two_alternative``.
    baseline_volumes : int
        The first so many usable volumes of a run are the baseline: values are told against their mean. 0: none.
    unit : {"raw", "z"}
        As the score comes, or in standard deviations of the baseline.
    half_life_s : float
        Older values weigh half after so long (exponential smoothing); 0: none.
    window_s : float
        Length of the sliding window of a correlation, seconds.
    bounds : tuple of float or None
        Values that the display begins and ends with; what lies outside is clipped. None: 0 and 1 for a probability,
        else -1 and 1.
    percentiles : tuple of float or None
        Of a score of volumes: once the calibration runs are over, these percentiles of its values in them take the
        place of `bounds`.
    steps : int
        Steps of the display between them.
    threshold : float or None
        Value from which the score counts as reached, which every message of it tells. None: nothing is told of it.
    deadline_s : float
        A value that is ready later than so long after its (last) volume arrived is not shown.
    """

    score: Literal[
        "none", "region", "difference", "connectivity", "category", "two_alternative", "retrieval", "similarity"
    ] = "none"
    regions: tuple[str, ...] = ()
    target: str = ""
    foil: str = ""
    baseline_volumes: Annotated[int, Meta(ge=0)] = 10
    unit: Literal["raw", "z"] = "raw"
    half_life_s: NonNegative = 0.0
    window_s: Positive = 30.0
    bounds: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    steps: Count = 20
    threshold: float | None = None
    deadline_s: Positive = 1.0

    def display(self) -> tuple[float, float]:
        """Return the values that the display begins and ends with."""
        return self.bounds or ((0.0, 1.0) if self.score in PROBABILITIES else (-1.0, 1.0))

    @property
    def of_trials(self) -> bool:
        """Whether the score is one of decoded trials."""
        return self.score in OF_TRIALS


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindingSettings:
    """A sealed allocation decides whether the participant is shown the score or a sham, and nobody present knows which.

    Attributes
    ----------
    allocation : Path or None
        File of ``rtdecode protocol allocate``. None: the score is shown, openly.
    key : Path or None
        The key that belongs to it. A third person keeps it, and gives the daemon alone the right to read it.
    donor : Path or None
        Session folder whose scores are the sham of a protocol with a yoked one. To be named for every participant,
        whichever the arm.
    """

    allocation: Path | None = None
    key: Path | None = None
    donor: Path | None = None


def blinding_problems(settings: BlindingSettings, *, protocol: bool) -> Iterator[str]:
    """Yield what is wrong with blinding, given whether the session follows a protocol."""
    if settings.allocation is None:
        if settings.key is not None or settings.donor is not None:
            yield "$.blinding.allocation: expected a file of `rtdecode protocol allocate`, got none"
        return
    if settings.key is None:
        yield "$.blinding.key: expected the key of the allocation, got none"
    if not protocol:
        yield "$.blinding.allocation: expected session.protocol beside it, got none"


def feedback_problems(settings: FeedbackSettings, regions: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with a score, given the names of the regions there are."""
    if settings.score == "none":
        return
    wanted = 0 if settings.of_trials else {"region": 1}.get(settings.score, 2)
    if settings.of_trials != bool(settings.target):
        yield f"$.feedback.target: expected one for scores of trials ({', '.join(OF_TRIALS)}), got {settings.target!r}"
    same = bool(settings.foil) and settings.foil == settings.target
    if same or (settings.score == "two_alternative") != bool(settings.foil):
        yield f"$.feedback.foil: expected another category for two_alternative alone, got {settings.foil!r}"
    low, high = settings.percentiles or (0.0, 100.0)
    if not 0 <= low < high <= 100 or (settings.percentiles and settings.of_trials):
        yield f"$.feedback.percentiles: expected two of 0 to 100 for a score of volumes, got {[low, high]}"
    if len(settings.regions) != wanted or len(set(settings.regions)) != wanted:
        yield f"$.feedback.regions: expected {wanted} for the score {settings.score}, got {list(settings.regions)}"
    known = ", ".join(regions) or "none"
    for name in settings.regions:
        if name not in regions:
            yield f"$.feedback.regions: expected names of estimate.regions ({known}), got {name!r}"
    low, high = settings.display()
    if not low < high:
        yield f"$.feedback.bounds: expected the lower before the higher, got {[low, high]}"
    if settings.unit == "z" and settings.baseline_volumes < 3:
        yield f"$.feedback.baseline_volumes: expected 3 or more for the unit z, got {settings.baseline_volumes}"
