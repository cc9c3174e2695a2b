"""The protocol of an experiment: one TOML file of runs, stimuli, score, sham and questions, known by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from rtdecode.errors import BundleError, SettingsError
from rtdecode.score_settings import FeedbackSettings, feedback_problems
from rtdecode.sections import read_toml, section_of
from rtdecode.typed import Table, checked

FORMAT = 1
HASH_DIGITS = 12
"""Of the SHA-256 of a protocol's file that name it in messages."""
ASKED = ("1a", "1b", "2c", "2e", "3a", "3b", "3c", "6a", "6b")
"""Entries of the CRED-nf checklist that no software can fill."""
Positive = Annotated[float, Meta(gt=0)]
Times = Annotated[int, Meta(ge=1, le=10_000)]
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:+ -]{1,128}$")]


class Block(Table, frozen=True, kw_only=True):
    """A stretch of a run: rest or a task of one length, or trials that show stimuli.

    Attributes
    ----------
    condition : str
        ``trial_type`` of its rows; empty: the set that each stimulus is of. ``rest``, ``fixation`` and the like are no
        trials.
    duration_s : float
        Of the block, or of each stimulus, seconds.
    stimuli : list of str
        Names of sets of stimuli, shown mixed; none: nothing is shown.
    paired : bool
        Each stimulus is the one at the same place of its set as that shown last in its own: what a cue asks for.
    trials : int
        How often, each time with another stimulus where there are some.
    pause_s : list of float
        Shortest and longest pause after each, seconds; drawn anew each time.
    feedback : {"none", "continuous", "after"}
        Whether the participant sees the score meanwhile, or at the end.
    """

    condition: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:+ -]{0,128}$")] = ""
    duration_s: Positive
    stimuli: tuple[Word, ...] = ()
    paired: bool = False
    trials: Times = 1
    pause_s: tuple[Annotated[float, Meta(ge=0)], Annotated[float, Meta(ge=0)]] = (0.0, 0.0)
    feedback: Literal["none", "continuous", "after"] = "none"


class PlannedRun(Table, frozen=True, kw_only=True):
    """A run, or several alike.

    Attributes
    ----------
    name : str
        What it is for, in a word or two.
    purpose : {"calibration", "decoding", "feedback", "transfer"}
        Calibration runs come first, and teach. In transfer runs participants regulate without feedback.
    repeats : int
        How many such runs.
    volumes : int or None
        Of each; None: as long as the blocks last, and `tail_s`.
    start_s, tail_s : float
        Before the first block and after the last, seconds.
    cycles : int
        How often the blocks come, one after another.
    blocks : list of Block
        In their order.
    """

    name: Word
    purpose: Literal["calibration", "decoding", "feedback", "transfer"]
    repeats: Times = 1
    volumes: Times | None = None
    start_s: Annotated[float, Meta(ge=0)] = 0.0
    tail_s: Annotated[float, Meta(ge=0)] = 0.0
    cycles: Times = 1
    blocks: Annotated[tuple[Block, ...], Meta(min_length=1)]


class ShamPlan(Table, frozen=True, kw_only=True):
    """What the participants of the sham arm are shown instead of their score.

    Attributes
    ----------
    kind : {"yoked", "time_shifted", "phase_scrambled", "random_walk", "other"}
        Yoked: the score that a donor was shown (``blinding.donor`` of the settings). Time shifted: the own score of
        `shift_s` before. Phase scrambled: the own score of the run before, with random phases. Random walk: one with
        mean, variance and autocorrelation of the own score so far. Other: the same score of other `regions`, or of
        another `target`. Where a kind has nothing to take (yet), a random walk stands in.
    shift_s : float
        Seconds.
    regions : list of str
        As many as the score has.
    target : str
        A category.
    """

    kind: Literal["yoked", "time_shifted", "phase_scrambled", "random_walk", "other"]
    shift_s: Positive = 60.0
    regions: tuple[str, ...] = ()
    target: str = ""


class FilmRule(Table, frozen=True, kw_only=True):
    """What becomes of a film that is no longer followed.

    Attributes
    ----------
    below_z : float
        The stimulus match of a whole window has fallen where its `z` is below this.
    volumes : int
        For so many volumes one after another.
    action : {"pause", "switch"}
        Pause: the session asks for a pause of the film, and decodes no trials until somebody resumes it. Switch: it
        asks for another film.
    film : str
        The other film, with ``switch``.
    """

    below_z: float
    volumes: Times
    action: Literal["pause", "switch"]
    film: str = ""


class Question(Table, frozen=True, kw_only=True):
    """Something that the software cannot know, and a report is to tell.

    Attributes
    ----------
    entry : str
        Of the CRED-nf checklist.
    ask : str
        The question.
    answer : str
        Where it is known beforehand.
    """

    entry: Literal["1a", "1b", "2c", "2e", "3a", "3b", "3c", "6a", "6b"]
    ask: Annotated[str, Meta(min_length=1)]
    answer: str = ""


class _Plan(Table, frozen=True, kw_only=True):
    format: int
    name: Word
    version: Word
    task: Annotated[str, Meta(pattern=r"^[A-Za-z0-9]+$")]
    t_r_s: Annotated[float, Meta(gt=0, le=30)]
    description: str = ""
    seed: Annotated[int, Meta(ge=0)] = 0
    stimuli: dict[Word, Annotated[tuple[Word, ...], Meta(min_length=1)]] = field(default_factory=dict)
    runs: Annotated[tuple[PlannedRun, ...], Meta(min_length=1)]
    sham: ShamPlan | None = None
    film: FilmRule | None = None
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A protocol that was read.

    Attributes
    ----------
    name, version, task, description : str
        `task` is a BIDS label.
    t_r_s : float
        Repetition time that it counts on, seconds.
    seed : int
        Of what is drawn: orders and pauses.
    stimuli : dict of str to tuple of str
        Sets of stimuli.
    runs : tuple of PlannedRun
        As many as are scanned: one that repeats stands there as often.
    feedback : FeedbackSettings
        The score; a session of this protocol has it, and none of its own.
    sham : ShamPlan or None
    film : FilmRule or None
    questions : tuple of Question
    hash : str
        First digits of the SHA-256 of the file: in every message.
    text : bytes
        The file.
    """

    name: str
    version: str
    task: str
    description: str
    t_r_s: float
    seed: int
    stimuli: dict[str, tuple[str, ...]]
    runs: tuple[PlannedRun, ...]
    feedback: FeedbackSettings
    sham: ShamPlan | None
    film: FilmRule | None
    questions: tuple[Question, ...]
    hash: str
    text: bytes

    @property
    def calibration_runs(self) -> int:
        """How many runs calibrate."""
        return sum(run.purpose == "calibration" for run in self.runs)


def read_protocol(path: Path) -> Protocol:
    """Read a protocol and hold it to itself.

    Raises
    ------
    SettingsError
        Lists what is wrong, each with its place.
    """
    raw: dict[str, Any] = read_toml(path)
    problems: list[str] = []
    feedback: FeedbackSettings | None = section_of(
        FeedbackSettings, raw.pop("feedback", {}), "feedback", path.parent, problems
    )
    if raw.get("format", FORMAT) != FORMAT:
        raise SettingsError([f"{path}: format: expected {FORMAT}, got {raw['format']!r}: it is of another version"])
    try:
        plan = checked(raw, _Plan, source=str(path), error=BundleError)
    except BundleError as error:
        raise SettingsError([str(error), *(f"{path}: {problem}" for problem in problems)]) from None
    if feedback is not None:
        problems += _problems(plan, feedback)
    if feedback is None or problems:
        raise SettingsError([f"{path}: {problem}" for problem in problems])
    text = path.read_bytes()
    return Protocol(
        name=plan.name,
        version=plan.version,
        task=plan.task,
        description=plan.description,
        t_r_s=plan.t_r_s,
        seed=plan.seed,
        stimuli=dict(plan.stimuli),
        runs=tuple(run for run in plan.runs for _ in range(run.repeats)),
        feedback=feedback,
        sham=plan.sham,
        film=plan.film,
        questions=plan.questions,
        hash=hashlib.sha256(text).hexdigest()[:HASH_DIGITS],
        text=text,
    )


def _problems(plan: _Plan, feedback: FeedbackSettings) -> Iterator[str]:
    for problem in feedback_problems(feedback, feedback.regions):
        yield problem.removeprefix("$.")
    after = False
    for number, run in enumerate(plan.runs):
        where = f"runs[{number}] ({run.name})"
        if run.purpose == "calibration" and after:
            yield f"{where}: purpose: expected calibration runs before all others"
        after |= run.purpose != "calibration"
        for place, block in enumerate(run.blocks):
            yield from _block_problems(f"{where}.blocks[{place}]", block, place, run, plan, feedback)
        longest_s = run.start_s + run.tail_s + run.cycles * sum(_longest_s(block) for block in run.blocks)
        if run.volumes is not None and longest_s > run.volumes * plan.t_r_s + 1e-6:
            yield (
                f"{where}: volumes: expected {-(-longest_s // plan.t_r_s):.0f} or more for blocks of up to "
                f"{longest_s:g} s, got {run.volumes} of {plan.t_r_s:g} s"
            )
        given = any(block.feedback != "none" for block in run.blocks)
        if run.purpose == "feedback" and not given:
            yield f"{where}: purpose: expected a block with feedback in a run for feedback, got none"
        if run.purpose == "transfer" and given:
            yield f"{where}: purpose: expected no block with feedback in a transfer run"
    for name, own in plan.stimuli.items():
        if len(set(own)) != len(own):
            yield f"stimuli.{name}: expected each stimulus once, got {len(own) - len(set(own))} again"
    if feedback.score in ("category", "two_alternative"):
        known = ", ".join(plan.stimuli) or "none"
        for name in {feedback.target, feedback.foil or feedback.target} - plan.stimuli.keys():
            yield f"feedback.target: expected a set of stimuli ({known}), got {name!r}"
    if plan.film is not None and (plan.film.action == "switch") != bool(plan.film.film):
        yield f"film.film: expected the name of a film for switch alone, got {plan.film.film!r} for {plan.film.action}"
    if plan.sham is not None:
        yield from _sham_problems(plan.sham, feedback, plan)


def _longest_s(block: Block) -> float:
    return block.trials * (block.duration_s + block.pause_s[1])


def _block_problems(
    where: str, block: Block, place: int, run: PlannedRun, plan: _Plan, feedback: FeedbackSettings
) -> Iterator[str]:
    for name in block.stimuli:
        if name not in plan.stimuli:
            yield f"{where}.stimuli: expected names of [stimuli] ({', '.join(plan.stimuli) or 'none'}), got {name!r}"
    if not block.condition and not block.stimuli:
        yield f"{where}: condition: expected one where nothing is shown, got none"
    before = run.blocks[place - 1].stimuli if place else ()
    sizes = [[len(plan.stimuli.get(name, ())) for name in names] for names in (before, block.stimuli)]
    if block.paired and (block.trials != 1 or len(sizes[0]) != 1 or sizes[0] != sizes[1]):
        yield f"{where}.paired: expected one trial after one that shows a set of as many stimuli, got {sizes[::-1]}"
    if block.pause_s[0] > block.pause_s[1]:
        yield f"{where}.pause_s: expected the shortest before the longest, got {list(block.pause_s)}"
    if block.feedback != "none" and feedback.score == "none":
        yield f"{where}.feedback: expected a score in [feedback], got none"
    if block.feedback != "none" and run.purpose == "calibration":
        yield f"{where}.feedback: expected none in a calibration run: nothing can be decoded yet"


def _sham_problems(sham: ShamPlan, feedback: FeedbackSettings, plan: _Plan) -> Iterator[str]:
    if feedback.score == "none":
        yield "sham: expected a score in [feedback], got none"
    if sham.kind != "other":
        return
    if feedback.of_trials:
        unknown = feedback.score in ("category", "two_alternative") and sham.target not in plan.stimuli
        if unknown or sham.target in ("", feedback.target):
            yield f"sham.target: expected another than {feedback.target!r}, got {sham.target!r}"
    elif len(sham.regions) != len(feedback.regions) or set(sham.regions) & set(feedback.regions):
        yield (
            f"sham.regions: expected {len(feedback.regions)} others than {list(feedback.regions)}, got "
            f"{list(sham.regions)}"
        )


def follow(path: Path, raw: Mapping[str, Any], sections: dict[str, Any]) -> Iterator[str]:
    """Let a protocol decide what it tells of a session, and yield what is told twice or wrong.

    Parameters
    ----------
    path : Path
        Of the protocol.
    raw : mapping
        The settings as they stand in their file.
    sections : dict
        The same by section, made; changed.
    """
    try:
        protocol = read_protocol(path)
    except SettingsError as error:
        yield from (f"$.session.protocol: {problem}" for problem in error.problems)
        return
    if "feedback" in raw:
        yield "$.feedback: expected no such section beside session.protocol, which has the score"
    if "runs" in raw.get("calibration", {}):
        yield "$.calibration.runs: expected none beside session.protocol, which tells the runs"
    sections["feedback"] = protocol.feedback
    if "calibration" in sections:
        sections["calibration"] = replace(sections["calibration"], runs=protocol.calibration_runs)
    estimate, blinding = sections.get("estimate"), sections.get("blinding")
    sham = protocol.sham
    if estimate is not None and sham is not None:
        for name in set(sham.regions) - set(estimate.regions):
            yield f"$.session.protocol: {path}: sham.regions: expected names of estimate.regions, got {name!r}"
    films, rule = sections.get("film"), protocol.film
    if films is not None and rule is not None and rule.film not in ("", *films.predictions):
        yield f"$.session.protocol: {path}: film.film: expected one of film.predictions, got {rule.film!r}"
    if blinding is not None and blinding.allocation is not None and sham is None:
        yield "$.blinding.allocation: expected a section [sham] in session.protocol, got none"
