"""A simulated visit in which pictures are imagined: calibration on pictures that are seen, then cued imagery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from rtdecode.simulate import world
from rtdecode.simulate.seeds import generator
from rtdecode.simulate.visit import Trial, VisitPlan

CUE: Final = "cue"
"""Stimulus and condition of announced cues."""
CATCH: Final = "catch"
"""Stimulus and condition of announced trials in which nothing is to be imagined."""
TARGETS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageryPlan(VisitPlan):
    """A visit whose decoding runs are imagery; the rest is as of `VisitPlan`.

    Each imagery trial is a cue and, right after it, an epoch in which its target is imagined: two announced events, so
    that the response to the letter is told apart. Each run shows every target equally often.

    Attributes
    ----------
    decoding_runs : int
        Of imagery.
    cue_s, epoch_s, rest_s : float
        Of a trial.
    repeats_per_run : int
        Of each target.
    catch_per_run : int
        Cues without a target.
    """

    decoding_runs: int = 4
    cue_s: float = 1.0
    epoch_s: float = 4.0
    rest_s: float = 3.0
    repeats_per_run: int = 3
    catch_per_run: int = 2

    def __post_init__(self) -> None:
        VisitPlan.__post_init__(self)
        needed = self.lead_in_s + self.imagery_trials * (self.cue_s + self.epoch_s + self.rest_s)
        if needed > self.volumes_per_run * self.t_r_s:
            raise ValueError(f"expected runs of at least {needed:g} s, got {self.volumes_per_run * self.t_r_s:g} s")
        seen = tuple(trial for trial in self.trials if trial.run <= self.calibration_runs)
        object.__setattr__(self, "trials", (*seen, *_imagined(self)))

    @property
    def imagery_trials(self) -> int:
        """Trials of an imagery run, those without a target included."""
        return TARGETS * self.repeats_per_run + self.catch_per_run

    @property
    def targets(self) -> dict[str, world.Scene]:
        """What is imagined, by stimulus: one picture of each of six categories, none of the calibration."""
        rng = generator(self.seed, "imagery targets")
        chosen = rng.permutation(len(world.CATEGORIES))[:TARGETS]
        return {f"target{i + 1}": world.sample_scene(rng, world.CATEGORIES[place]) for i, place in enumerate(chosen)}

    def write_stimuli(self, folder: Path) -> None:
        """Write the pictures of the calibration and the targets; see `VisitPlan.write_stimuli`."""
        VisitPlan.write_stimuli(self, folder)
        shown = {trial.stimulus for trial in self.trials}
        for path in folder.glob("*.png"):
            if path.stem not in shown:
                path.unlink()
        for stimulus, scene in self.targets.items():
            Image.fromarray(world.render(scene)[0]).save(folder / f"{stimulus}.png")


def _imagined(plan: ImageryPlan) -> tuple[Trial, ...]:
    targets = plan.targets
    rng = generator(plan.seed, "imagery order")
    trials = []
    for run in range(plan.calibration_runs + 1, plan.runs + 1):
        names = [*list(targets) * plan.repeats_per_run, *[CATCH] * plan.catch_per_run]
        for order, name in enumerate(str(one) for one in rng.permutation(names)):
            onset_s = plan.lead_in_s + order * (plan.cue_s + plan.epoch_s + plan.rest_s)
            number = f"r{run:02d}t{order + 1:03d}"
            scene = targets.get(name)
            if plan.shuffle_labels and scene is not None:
                name = str(rng.choice(list(targets)))
            cue = Trial(
                run=run,
                trial=f"{number}c",
                onset_s=onset_s,
                duration_s=plan.cue_s,
                scene=None,
                stimulus=CUE,
                condition=CUE,
                kind="cue",
            )
            epoch = Trial(
                run=run,
                trial=number,
                onset_s=onset_s + plan.cue_s,
                duration_s=plan.epoch_s,
                scene=scene,
                stimulus=name,
                condition=targets[name].category if name in targets else CATCH,
                kind="imagery",
            )
            trials += [cue, epoch]
    return tuple(trials)
