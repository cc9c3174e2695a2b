"""A film that does not exist, a participant who watches it, and what an encoding model predicts of other brains.

The film is a string of shots, several of each place: pictures of the project's own world, with noises and spoken words
where it has sound. The prediction knows the shots, what is heard, and the responses of other people of the population,
not those of the participant: as a published encoder does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from rtdecode.packs.film_prediction import FilmPrediction, PredictionTable
from rtdecode.simulate import world
from rtdecode.simulate.acquisition import sampled_at, time_courses
from rtdecode.simulate.participant import Participant
from rtdecode.simulate.playback import Announce
from rtdecode.simulate.seeds import generator
from rtdecode.simulate.visit import Kind, Trial

_SHOTS_A_SCENE = 3
_HEARD_SHARE = 0.5
_SAID = "there is a {}"
_WORD_S = 0.4
_FEWEST_VOXELS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmPlan:
    """Films, one a run, fixed by the seed.

    Attributes
    ----------
    seed : int
    runs, volumes_per_run : int
    t_r_s : float
        Seconds.
    shot_s : float
        Length of a shot, seconds.
    onset_s : float
        When the film begins in each run, seconds from its first volume.
    closed_s : tuple of (int, float, float)
        Run, and seconds of the run from and to which the eyes are closed.
    sound : bool
        Whether there is something to hear, and with it a transcript; it is heard with closed eyes as well.
    """

    seed: int = 0
    runs: int = 2
    volumes_per_run: int = 160
    t_r_s: float = 1.5
    shot_s: float = 3.0
    onset_s: float = 6.0
    closed_s: tuple[tuple[int, float, float], ...] = ()
    sound: bool = False
    trials: tuple[Trial, ...] = field(init=False)

    def __post_init__(self) -> None:
        made = [
            trial
            for run in range(1, self.runs + 1)
            for trial in (*self._shots(run), *(self._sounds(run) if self.sound else ()))
        ]
        object.__setattr__(self, "trials", tuple(made))

    @property
    def duration_s(self) -> float:
        """Of each film, seconds."""
        shots = int((self.volumes_per_run * self.t_r_s - self.onset_s) / self.shot_s)
        return shots * self.shot_s

    def film(self, run: int) -> str:
        """Name of the film of a run."""
        return f"film{run}"

    def of_run(self, run: int) -> tuple[Trial, ...]:
        """Shots of one run in their order, then what is heard in it."""
        return tuple(trial for trial in self.trials if trial.run == run)

    def transcript(self, run: int) -> list[tuple[float, float, str]]:
        """Onset and length of each word, seconds of the film of a run, and the word; none without sound."""
        return [
            (trial.onset_s - self.onset_s + place * _WORD_S, _WORD_S, word)
            for trial in self.of_run(run)
            if trial.kind == "speech"
            for place, word in enumerate(_SAID.format(trial.condition).split())
        ]

    def announcing(self, announce: Announce) -> Announce:
        """Return what announces the films of this plan in place of their shots."""

        def of_films(message: dict[str, object]) -> None:
            if message["kind"] == "trial":
                return
            announce(message)
            if message["kind"] == "run_start":
                run = int(str(message["run"]))
                announce({"kind": "film", "run": run, "stimulus": self.film(run), "onset_s": self.onset_s})

        return of_films

    def _shots(self, run: int) -> list[Trial]:
        rng = generator(self.seed, "film", run)
        made: list[Trial] = []
        category = ""
        for number in range(round(self.duration_s / self.shot_s)):
            onset_s = self.onset_s + number * self.shot_s
            if number % _SHOTS_A_SCENE == 0:
                category = str(rng.choice(world.CATEGORIES))
            scene = world.sample_scene(rng, category)
            closed = any(of == run and begin <= onset_s < end for of, begin, end in self.closed_s)
            made.append(
                Trial(
                    run=run,
                    trial=f"r{run:02d}s{number:03d}",
                    onset_s=onset_s,
                    duration_s=self.shot_s,
                    scene=scene,
                    stimulus=self.film(run),
                    condition=category,
                    kind="blank" if closed else "picture",
                )
            )
        return made

    def _sounds(self, run: int) -> list[Trial]:
        """Noises in some of the shots, and words about what others show."""
        rng = generator(self.seed, "sound", run)
        made: list[Trial] = []
        for number, shot in enumerate(self._shots(run)):
            kind: Kind = "noise" if rng.random() < 0.5 else "speech"
            length_s = float(rng.uniform(0.5, 2.5)) if kind == "noise" else _WORD_S * len(_SAID.split())
            since_s = float(rng.uniform(0.0, max(self.shot_s - length_s, 0.0)))
            if rng.random() < _HEARD_SHARE:
                made.append(
                    Trial(
                        run=run,
                        trial=f"r{run:02d}h{number:03d}",
                        onset_s=shot.onset_s + since_s,
                        duration_s=length_s,
                        scene=None,
                        stimulus=self.film(run),
                        condition=shot.condition,
                        kind=kind,
                    )
                )
        return made


def parcel_labels(participant: Participant, side_mm: float = 14.0) -> NDArray[np.int16]:
    """Cut the visual region of a participant into blocks that all people have at the same place.

    Parameters
    ----------
    participant : Participant
    side_mm : float
        Of a block.

    Returns
    -------
    array of the protocol's shape, int16
        0 where there is no parcel.
    """
    protocol = participant.protocol
    index = np.indices(protocol.shape).reshape(3, -1)
    ras = protocol.affine[:3, :3] @ index + protocol.affine[:3, 3:]
    block = np.floor((ras + 200.0) / side_mm).astype(np.int64)
    every = (block[0] + 100 * (block[1] + 100 * block[2])).reshape(protocol.shape)
    inside = participant.region()
    labels = np.zeros(protocol.shape, np.int16)
    _, places, sizes = np.unique(every[inside], return_inverse=True, return_counts=True)
    large = sizes >= _FEWEST_VOXELS
    labels[inside] = np.where(large, np.cumsum(large), 0)[places]
    return labels


def write_labels(participant: Participant, labels: NDArray[np.int16], path: Path) -> None:
    """Write a label image in the space of the acquired volumes."""
    nib.save(nib.Nifti1Image(labels, participant.protocol.affine), path)


def predict_film(plan: FilmPlan, run: int, labels: NDArray[np.int16], people: Sequence[Participant]) -> FilmPrediction:
    """Predict the parcels of a film as the mean of what it evokes in other people, without any noise.

    Parameters
    ----------
    plan : FilmPlan
    run : int
        Whose film.
    labels : array of shape (i, j, k), int16
        On the grid that all people are scanned with.
    people : sequence of Participant
    """
    volumes = round(plan.duration_s / plan.t_r_s)
    shots = [
        Trial(
            run=shot.run,
            trial=shot.trial,
            onset_s=shot.onset_s - plan.onset_s,
            duration_s=shot.duration_s,
            scene=shot.scene,
            stimulus=shot.stimulus,
            condition=shot.condition,
            kind="picture" if shot.kind == "blank" else shot.kind,
        )
        for shot in plan.of_run(run)
    ]
    count = int(labels.max())
    total = np.zeros((volumes, count))
    for person in people:
        evoked = person.responses([shot.scene for shot in shots], [shot.kind for shot in shots])
        courses = time_courses(person, tuple(shots), evoked, volumes * plan.t_r_s)
        at = sampled_at(courses, np.asarray((np.arange(volumes) + 0.5) * plan.t_r_s, np.float64))
        of_voxels = labels[tuple(person.voxels.T)]
        sums = np.zeros((volumes, count + 1))
        np.add.at(sums.T, of_voxels, at.T)
        total += sums[:, 1:] / np.maximum(np.bincount(labels.ravel(), minlength=count + 1)[1:], 1)
    names = [str(label) for label in range(1, count + 1)]
    about = PredictionTable(
        film=plan.film(run),
        duration_s=plan.duration_s,
        t_r_s=plan.t_r_s,
        delay_s=0.0,
        parcels=names,
        networks=["Vis"] * count,
        modalities=["text", "audio", "vision"] if plan.sound else ["vision"],
        absent={} if plan.sound else {"text": "the simulated film has none", "audio": "the simulated film has none"},
    )
    predicted = (total / len(people)).astype(np.float32)
    return FilmPrediction(about=about, predicted=predicted, profiles={})
