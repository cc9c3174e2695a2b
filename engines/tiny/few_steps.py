"""The few-step half of the recipe: from autoencoder to students (torch). Import this module inside functions only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engines.tiny import pictures, shared, students
from engines.tiny.diffusion import TinyAutoencoder, TinyUnclip
from engines.tiny.tiny_prior import DiffusionPrior
from engines.tiny.train import Trained
from engines.training.loop import Fitted, Plan

_FEWEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FewSteps:
    """The networks of the few-step half.

    Attributes
    ----------
    autoencoder : Autoencoder
    prior, prior_teacher : DiffusionPrior
    unclip, unclip_teacher : Unclip
    r2 : list of list of float
        Explained variance of semantic and spatial tokens in each participant that the shared part was trained on.
    stages : dict of str to Fitted
        What each stage took.
    """

    autoencoder: TinyAutoencoder
    prior: DiffusionPrior
    prior_teacher: DiffusionPrior
    unclip: TinyUnclip
    unclip_teacher: TinyUnclip
    r2: list[list[float]]
    stages: dict[str, Fitted]


def train_few_steps(trained: Trained, out: Path, *, seed: int, effort: float, resume: bool) -> FewSteps:
    """Train every stage; parameters as in `engines.tiny.train.train`.

    Stages: autoencoder, unclip_teacher, autoencoder_finish, shared (several participants), prior_student,
    unclip_student.
    """
    folder = out / "checkpoints"

    def scaled(plan: Plan) -> Plan:
        return replace(plan, seed=seed, steps=max(_FEWEST, round(plan.steps * effort)))

    stages: dict[str, Fitted] = {}
    autoencoder, stages["autoencoder"] = pictures.train_autoencoder(
        trained, folder, scaled(pictures.AUTOENCODER), resume=resume
    )
    latents = pictures.encode_all(autoencoder, trained.sample.pictures)
    teacher, stages["unclip_teacher"] = pictures.train_teacher(
        trained, autoencoder, latents, folder, scaled(pictures.TEACHER), resume=resume
    )
    model, people, stages["shared"] = shared.train_shared(trained, folder, scaled(shared.SHARED), resume=resume)
    prior, stages["prior_student"] = students.distil_prior(
        model, trained, people, folder, scaled(students.PRIOR), resume=resume
    )
    unclip, stages["unclip_student"] = students.distil_unclip(
        teacher, autoencoder, latents, trained, folder, scaled(students.UNCLIP), resume=resume
    )
    autoencoder, stages["autoencoder_finish"] = pictures.finish_autoencoder(
        autoencoder, trained, latents, folder, scaled(pictures.FINISH), resume=resume
    )
    return FewSteps(
        autoencoder=autoencoder,
        prior=prior.eval(),
        prior_teacher=model.diffusion.eval(),
        unclip=unclip.eval(),
        unclip_teacher=teacher.eval(),
        r2=shared.mean_r2(model),
        stages=stages,
    )
