"""The plan of a simulated visit: which picture is shown when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from rtdecode.simulate import world
from rtdecode.simulate.seeds import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One picture on the screen.

    Attributes
    ----------
    run : int
        From 1.
    trial : str
        Unique in the visit, ``r01t001``.
    onset_s, duration_s : float
        Seconds from the start of acquisition of the run's first volume.
    scene : Scene
        The picture that the participant sees.
    stimulus : str
        Identifier that is announced.
    condition : str
        Category that is announced.
    """

    run: int
    trial: str
    onset_s: float
    duration_s: float
    scene: world.Scene
    stimulus: str
    condition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitPlan:
    """A visit, fixed by its seed. No picture is shown twice.

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
    shuffle_labels: bool = False
    trials: tuple[Trial, ...] = field(init=False)

    def __post_init__(self) -> None:
        end_s = self.lead_in_s + self.trials_per_run * (self.trial_s + self.pause_s)
        if end_s > self.volumes_per_run * self.t_r_s:
            raise ValueError(f"expected runs of at least {end_s:g} s, got {self.volumes_per_run * self.t_r_s:g} s")
        object.__setattr__(self, "trials", _trials(self))

    @property
    def runs(self) -> int:
        """Number of runs."""
        return self.calibration_runs + self.decoding_runs

    def of_run(self, run: int) -> tuple[Trial, ...]:
        """Trials of one run, in order."""
        return tuple(trial for trial in self.trials if trial.run == run)

    def write_stimuli(self, folder: Path) -> None:
        """Write each picture as ``<stimulus>.png`` under the identifier it is announced with.

        With shuffled labels an identifier still names its own picture; it is the wrong one that is shown.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for stimulus, scene in _pictures(self).items():
            Image.fromarray(world.render(scene)[0]).save(folder / f"{stimulus}.png")


def _pictures(plan: VisitPlan) -> dict[str, world.Scene]:
    """Draw scenes by identifier, in the order they are shown; each run is balanced over categories."""
    rng = generator(plan.seed, "pictures")
    scenes: dict[str, world.Scene] = {}
    used: Counter[str] = Counter()
    for _ in range(plan.runs):
        offset = int(rng.integers(len(world.CATEGORIES)))
        names = [world.CATEGORIES[(offset + i) % len(world.CATEGORIES)] for i in range(plan.trials_per_run)]
        for category in rng.permutation(names):
            used[str(category)] += 1
            scenes[f"s{len(scenes) + 1:04d}"] = world.sample_scene(rng, str(category))
    return scenes


def _trials(plan: VisitPlan) -> tuple[Trial, ...]:
    pictures = _pictures(plan)
    shown = list(pictures)
    announced = list(shown)
    if plan.shuffle_labels:
        announced = [shown[i] for i in generator(plan.seed, "shuffled labels").permutation(len(shown))]
    trials = []
    for at, (true, told) in enumerate(zip(shown, announced, strict=True)):
        run, order = divmod(at, plan.trials_per_run)
        trials.append(
            Trial(
                run=run + 1,
                trial=f"r{run + 1:02d}t{order + 1:03d}",
                onset_s=plan.lead_in_s + order * (plan.trial_s + plan.pause_s),
                duration_s=plan.trial_s,
                scene=pictures[true],
                stimulus=told,
                condition=pictures[told].category,
            )
        )
    return tuple(trials)
