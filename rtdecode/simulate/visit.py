"""The plan of a simulated visit: which picture is shown when."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtdecode.simulate import world
from rtdecode.simulate.seeds import generator

Kind = Literal["picture", "null", "half", "lapsed", "blank", "imagery", "cue", "noise", "speech", "regulate"]
"""What a trial is to the brain: a picture, one without content, half the signal, no look at it, nothing at all, a
picture that is imagined (or, without a scene, nothing in particular), the cue for that, what is heard in a film, or a
try to raise what is shown for feedback, of which a `Regulator` decides."""
HEARD: Final = ("noise", "speech")
NULL: Final = "null"
"""Stimulus and condition of announced pictures without content."""


class CalibrationLength(NamedTuple):
    """Runs of a calibration, and how long they are."""

    runs: int
    trials_per_run: int = 40
    volumes_per_run: int = 116


PROTOCOLS: Final = {
    5: CalibrationLength(2, trials_per_run=34, volumes_per_run=100),
    30: CalibrationLength(10),
    60: CalibrationLength(20),
}
"""Calibrations that fit so many minutes: 68, 400 and 800 trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is announced at a moment, and what happens.

    Attributes
    ----------
    run : int
        From 1.
    trial : str
        Unique in the visit, ``r01t001``.
    onset_s, duration_s : float
        Seconds from the start of acquisition of the run's first volume.
    scene : Scene or None
        The picture that the participant sees; None if it has no content, or there is none.
    stimulus : str
        Identifier that is announced.
    condition : str
        Category that is announced.
    kind : Kind
        What it is to the brain.
    spike : bool
        Whether the head moves suddenly while the response is at its height.
    """

    run: int
    trial: str
    onset_s: float
    duration_s: float
    scene: world.Scene | None
    stimulus: str
    condition: str
    kind: Kind = "picture"
    spike: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """What all trials of a decoding run have in common; what is announced does not tell it.

    Attributes
    ----------
    kind : Kind
        What the trials are to the brain.
    spike : bool
        The head moves suddenly in each of them.
    wrong : bool
        Each trial is announced as the picture of another one of the run.
    """

    kind: Kind = "picture"
    spike: bool = False
    wrong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitPlan:
    """A visit, fixed by its seed. No picture is shown twice unless `repeats` says so.

    Attributes
    ----------
    seed : int
    calibration_runs, decoding_runs : int
    trials_per_run, volumes_per_run : int
    t_r_s : float
    trial_s, pause_s : float
        A picture is on for `trial_s`, then nothing for `pause_s`.
    lead_in_s : float
        From the start of the run to the first picture.
    null_trials_per_run : int
        So many trials of each calibration run, one after another, show a picture without content, announced as `NULL`.
        Among other trials their betas would hold a part of their neighbours' pictures.
    null_runs : int
        So many of the calibration runs, the last ones, show nothing but pictures without content.
    repeats : int
        So many pictures of the calibration are shown twice, in different runs; then there are fewer pictures.
    strata : tuple of Stratum
        One a decoding run; all are ordinary when empty.
    shuffle_labels : bool
        Announce the identifiers and categories in random order over all trials: a control, nothing can then
        be decoded.
    """

    seed: int = 0
    calibration_runs: int = 6
    decoding_runs: int = 2
    trials_per_run: int = 40
    volumes_per_run: int = 116
    t_r_s: float = 1.5
    trial_s: float = 2.0
    pause_s: float = 2.0
    lead_in_s: float = 3.0
    null_trials_per_run: int = 0
    null_runs: int = 0
    repeats: int = 0
    strata: tuple[Stratum, ...] = ()
    shuffle_labels: bool = False
    trials: tuple[Trial, ...] = field(init=False)

    def __post_init__(self) -> None:
        end_s = self.lead_in_s + self.trials_per_run * (self.trial_s + self.pause_s)
        if end_s > self.volumes_per_run * self.t_r_s:
            raise ValueError(f"expected runs of at least {end_s:g} s, got {self.volumes_per_run * self.t_r_s:g} s")
        if not 0 <= self.null_trials_per_run < self.trials_per_run:
            raise ValueError(
                f"expected fewer trials without content than the {self.trials_per_run} of a run, "
                f"got {self.null_trials_per_run}"
            )
        if not 0 <= self.null_runs < self.calibration_runs + (self.null_runs == 0):
            raise ValueError(
                f"expected fewer runs without content than the {self.calibration_runs} of the calibration, "
                f"got {self.null_runs}"
            )
        if self.strata and len(self.strata) != self.decoding_runs:
            raise ValueError(f"expected a stratum for each of {self.decoding_runs} runs, got {len(self.strata)}")
        object.__setattr__(self, "trials", _trials(self))

    def lasting(self, minutes: int) -> VisitPlan:
        """Return the plan with a calibration of so many minutes, one of `PROTOCOLS`."""
        runs, trials, volumes = PROTOCOLS[minutes]
        return replace(self, calibration_runs=runs, trials_per_run=trials, volumes_per_run=volumes)

    @property
    def runs(self) -> int:
        """Number of runs."""
        return self.calibration_runs + self.decoding_runs

    def of_run(self, run: int) -> tuple[Trial, ...]:
        """Trials of one run, in order."""
        return tuple(trial for trial in self.trials if trial.run == run)

    def write_stimuli(self, folder: Path) -> None:
        """Write each picture as ``<stimulus>.png`` under the identifier it is announced with.

        With shuffled labels an identifier still names its own picture; it is the wrong one that is shown. A picture
        without content, if the plan shows any, is written into a folder of its own, ``null/null.png``: all pictures in
        `folder` itself are what a trial may be decoded as.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for stimulus, scene in _pictures(self)[0].items():
            Image.fromarray(world.render(scene)[0]).save(folder / f"{stimulus}.png")
        if self.null_trials_per_run or self.null_runs:
            (folder / NULL).mkdir(exist_ok=True)
            Image.fromarray(texture(generator(self.seed, "texture"))).save(folder / NULL / f"{NULL}.png")


def texture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a grey picture without content, (PICTURE_PX, PICTURE_PX, 3): the spectrum of a picture, phases at random."""
    grey = world.render(world.sample_scene(rng))[0].mean(axis=2)
    phases = np.angle(np.fft.fft2(rng.standard_normal(grey.shape)))
    mixed = np.fft.ifft2(np.abs(np.fft.fft2(grey - grey.mean())) * np.exp(1j * phases)).real
    scaled = np.clip(128 + 40 * mixed / mixed.std(), 0, 255).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _pictures(plan: VisitPlan) -> tuple[dict[str, world.Scene], list[list[str | None]]]:
    """Draw scenes by identifier, and what each run shows in order, None where there is no content.

    Each run is balanced over categories. A picture that is shown again takes the place of one of its category.
    """
    rng = generator(plan.seed, "pictures")
    scenes: dict[str, world.Scene] = {}
    shown: list[list[str | None]] = []
    for run in range(plan.runs):
        n_null = plan.null_trials_per_run if run < plan.calibration_runs else 0
        if plan.calibration_runs - plan.null_runs <= run < plan.calibration_runs:
            n_null = plan.trials_per_run
        offset = int(rng.integers(len(world.CATEGORIES)))
        names = [world.CATEGORIES[(offset + i) % len(world.CATEGORIES)] for i in range(plan.trials_per_run - n_null)]
        order: list[str | None] = []
        for category in rng.permutation(names):
            stimulus = f"s{len(scenes) + 1:04d}"
            scenes[stimulus] = world.sample_scene(rng, str(category))
            order.append(stimulus)
        at = int(generator(plan.seed, "no content", run).integers(len(order) + 1))
        order[at:at] = [None] * n_null
        shown.append(order)
    _repeat(plan, scenes, shown)
    return scenes, shown


def _repeat(plan: VisitPlan, scenes: dict[str, world.Scene], shown: list[list[str | None]]) -> None:
    """Show pictures again in a later run of the calibration, in place of others, which are left out."""
    rng = generator(plan.seed, "repeats")
    places = [(run, at) for run in range(plan.calibration_runs) for at, name in enumerate(shown[run]) if name]
    free = [places[i] for i in rng.permutation(len(places))]
    for number in range(plan.repeats):
        pairs = (
            (here, there)
            for here, there in combinations(free, 2)
            if here[0] != there[0] and _category(scenes, shown, here) == _category(scenes, shown, there)
        )
        pair = next(pairs, None)
        if pair is None:
            raise ValueError(f"expected at most {number} repeats in this calibration, got {plan.repeats}")
        (run, at), (other, place) = sorted(pair)
        del scenes[str(shown[other][place])]
        shown[other][place] = shown[run][at]
        free = [place for place in free if place not in pair]


def _category(scenes: dict[str, world.Scene], shown: list[list[str | None]], place: tuple[int, int]) -> str:
    return scenes[str(shown[place[0]][place[1]])].category


def _trials(plan: VisitPlan) -> tuple[Trial, ...]:
    pictures, shown = _pictures(plan)
    announced = _announced(plan, shown)
    strata = [*[Stratum()] * plan.calibration_runs, *(plan.strata or [Stratum()] * plan.decoding_runs)]
    trials = []
    for run, stratum in enumerate(strata):
        for order, (true, told) in enumerate(zip(shown[run], announced[run], strict=True)):
            kind: Kind = stratum.kind if true else "null"
            trials.append(
                Trial(
                    run=run + 1,
                    trial=f"r{run + 1:02d}t{order + 1:03d}",
                    onset_s=plan.lead_in_s + order * (plan.trial_s + plan.pause_s),
                    duration_s=plan.trial_s,
                    scene=pictures[true] if true and kind not in ("null", "blank", "regulate") else None,
                    stimulus=told or NULL,
                    condition=pictures[told].category if told else NULL,
                    kind=kind,
                    spike=stratum.spike,
                )
            )
    return tuple(trials)


def _announced(plan: VisitPlan, shown: list[list[str | None]]) -> list[list[str | None]]:
    """Return what is announced where `shown` is seen: the truth, unless labels are shuffled or wrong."""
    announced = [list(order) for order in shown]
    places = [(run, at) for run, order in enumerate(shown) for at, name in enumerate(order) if name]
    if plan.shuffle_labels:
        mixed = generator(plan.seed, "shuffled labels").permutation(len(places))
        for (run, at), source in zip(places, mixed, strict=True):
            announced[run][at] = shown[places[source][0]][places[source][1]]
    for run, stratum in enumerate(plan.strata, start=plan.calibration_runs):
        if stratum.wrong:
            mixed = generator(plan.seed, "wrong pictures", run).permutation(len(shown[run]))
            for here, there in zip(mixed, np.roll(mixed, 1), strict=True):
                announced[run][here] = shown[run][there]
    return announced
