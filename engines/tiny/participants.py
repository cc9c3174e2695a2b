"""Simulated participants that the shared part is trained on (torch). Import this module inside functions only.

Their seeds are far from those of demos and tests, and trial noise is drawn anew for every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines.tiny import networks
from engines.tiny.data import Sample
from engines.training.shared_model import Trials
from rtdecode.simulate.participant import ResponseParameters, make_participant

FIRST_SEED = 7_310_000_000
N_PARTICIPANTS = 4
N_VOXELS = (1600, 1800, 2000, 1400)
MEASUREMENT_NOISE = (2.0, 4.0, 6.0, 9.0)
"""Percent signal change that scanner and estimation add to a trial's beta, by participant."""
N_PICTURES = 4000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedParticipant:
    """What pictures evoke in one brain.

    Attributes
    ----------
    number : int
    rows : Tensor of shape (n,), int64
        Pictures of the sample that the participant sees.
    evoked : Tensor of shape (n, voxels)
        Noiseless responses, standardised.
    noise : Tensor of shape (rank, voxels)
        Standard normal draws to trial noise.
    white : Tensor of shape (voxels,)
        Deviation of the noise that voxels do not share, measurement noise included.
    """

    number: int
    rows: Tensor
    evoked: Tensor
    noise: Tensor
    white: Tensor

    def betas(self, at: Tensor, draw: torch.Generator) -> Tensor:
        """Betas (n, voxels) of pictures seen, with fresh noise."""
        structured = torch.randn((len(at), len(self.noise)), generator=draw) @ self.noise
        return self.evoked[at] + structured + self.white * torch.randn((len(at), len(self.white)), generator=draw)


def simulate_participants(sample: Sample, seed: int) -> list[SimulatedParticipant]:
    """Let each participant see its own pictures of the sample."""
    rng = np.random.default_rng([seed, FIRST_SEED])
    people = []
    for number in range(N_PARTICIPANTS):
        person = make_participant(
            FIRST_SEED + 100 * seed + number, parameters=ResponseParameters(n_responsive=N_VOXELS[number])
        )
        rows = rng.choice(len(sample), min(N_PICTURES, len(sample)), replace=False)
        evoked = person.responses([sample.scenes[row] for row in rows])
        white = np.full(evoked.shape[1], MEASUREMENT_NOISE[number])
        shared = person.noise.shared
        alone = np.sqrt(np.square(white) + person.noise.variance() - np.square(shared).sum(0))
        total = np.sqrt(evoked.var(0) + np.square(shared).sum(0) + np.square(alone))
        people.append(
            SimulatedParticipant(
                number=number,
                rows=torch.from_numpy(rows),
                evoked=torch.from_numpy((evoked - evoked.mean(0)) / total).float(),
                noise=torch.from_numpy(shared / total).float(),
                white=torch.from_numpy(alone / total).float(),
            )
        )
    return people


def trial_batches(
    people: list[SimulatedParticipant],
    sample: Sample,
    tokens: Tensor,
    critic: networks.Critic | None,
    size: int,
) -> Callable[[torch.Generator], list[Trials]]:
    """Draw batches of `size` trials of each participant.

    Parameters
    ----------
    people : list of SimulatedParticipant
    sample : Sample
    tokens : Tensor of shape (n, TOKENS, CHANNELS)
        Of all pictures of the sample, standardised.
    critic : Critic or None
        Teacher of the low-level branch; None leaves out what that branch needs.
    size : int
    """

    def draw_batch(draw: torch.Generator) -> list[Trials]:
        batch = []
        for person in people:
            at = torch.randint(len(person.rows), (size,), generator=draw)
            rows = person.rows[at]
            latent, teacher, augmented = (None, None, None) if critic is None else _low_targets(critic, sample, rows)
            batch.append(
                Trials(
                    participant=person.number,
                    betas=person.betas(at, draw),
                    tokens=tokens[rows],
                    latent=latent,
                    teacher=teacher,
                    teacher_augmented=augmented,
                    rows=rows,
                )
            )
        return batch

    return draw_batch


def _low_targets(critic: networks.Critic, sample: Sample, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pictures = torch.from_numpy(sample.pictures[rows.numpy()]).float() / 255
    blurred = functional.interpolate(functional.avg_pool2d(pictures, 4), scale_factor=4.0, mode="bilinear")
    with torch.no_grad():
        teacher, augmented = (_map_features(critic.features(view)[-1]) for view in (pictures, blurred))
    return _small(pictures), teacher, augmented


def _small(pictures: Tensor) -> Tensor:
    """Colours and brightness (n, 4, 28, 28) from -1 to 1: the low-level target where there is no larger autoencoder."""
    small = functional.interpolate(pictures, size=(28, 28), mode="area") * 2 - 1
    return torch.cat([small, small.mean(1, keepdim=True)], 1)


def _map_features(maps: Tensor) -> Tensor:
    """Features (n, 49, 512) of maps (n, c, 8, 8): pooled to 7 x 7, the missing channels zero."""
    pooled = functional.adaptive_avg_pool2d(maps, 7).flatten(2).transpose(1, 2)
    return functional.pad(pooled, (0, 512 - pooled.shape[2]))
