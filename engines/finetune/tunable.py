"""What can be fine-tuned on one participant, of any family (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.finetune.lora import LowRank
from engines.training.objective import Weights
from engines.training.shared_model import Trials
from rtdecode.decode.networks.backbone import BackboneOutput
from rtdecode.decode.sampling.schedule import CosineSchedule
from rtdecode.decode.score.adapter import Adapter


def place() -> tuple[str, torch.dtype | None]:
    """Return where networks are trained, as torch names it, and in which half precision, if any."""
    if not torch.cuda.is_available():
        return "cpu", None
    return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else None


class Tunable(nn.Module):  # type: ignore[misc]
    """A `Learner` that begins as the closed-form decoder of a participant.

    Its betas are what the participant's adapter makes of them: flattened tokens (n, m). The adapter itself stays as it
    is: trained on so few trials it would learn these by heart.

    Parameters
    ----------
    weights : Weights
        Of the objective.
    schedule : CosineSchedule
        Of the prior.
    precision : torch.dtype or None
        Of the products while it is trained.
    """

    def __init__(self, weights: Weights, schedule: CosineSchedule, precision: torch.dtype | None) -> None:
        super().__init__()
        self.weights = weights
        self.schedule = schedule
        self.precision = precision
        self._low_rank: list[LowRank] = []
        self._untrained: dict[str, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        found: torch.device = next(self.parameters()).device
        return found

    def train_all(self) -> None:
        """Train every weight, not low-rank additions."""
        self.requires_grad_(True)
        self._untrained = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def begin(self, adapter: Adapter, draw: torch.Generator) -> None:  # noqa: ARG002 - for subclasses
        """Become the closed-form decoder again, of an adapter."""
        for layer in self._low_rank:
            layer.begin(draw)
        if self._untrained is not None:
            self.load_state_dict(self._untrained)

    def leave_start(self) -> None:
        """Leave the closed-form decoder, where no training leads away from it step by step."""

    def ridge(self, betas: Tensor, participant: int = 0) -> Tensor:  # noqa: ARG002 - one participant
        """Return what the backbone reads; the adapter has been applied before."""
        return betas

    def condition(self, tokens: Tensor, trials: Sequence[Trials]) -> Tensor:  # noqa: ARG002 - for subclasses
        """Give the prior the backbone's tokens themselves."""
        return tokens

    def extra(self, draw: torch.Generator) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002 - none
        """Return None: the prior is trained on the participant's trials alone."""
        return None

    def prior(
        self, noisy: Tensor, t: Tensor, condition: Tensor, *, keep_condition: Tensor, keep_image: Tensor
    ) -> Tensor:
        """Clean tokens of noisy ones, by the `denoiser`."""
        with torch.autocast(noisy.device.type, self.precision, enabled=self.precision is not None):
            clean: Tensor = self.denoiser(noisy, t, condition, keep_condition=keep_condition, keep_image=keep_image)
        return clean.float()

    def backbone(self, hidden: Tensor) -> BackboneOutput:
        """Tokens, and those that pictures are searched with."""
        raise NotImplementedError

    def read(self, decoded: Tensor) -> BackboneOutput:
        """Decode by ridge and backbone, in the precision of the training."""
        with torch.autocast(decoded.device.type, self.precision, enabled=self.precision is not None):
            return self.backbone(self.ridge(decoded))

    def targets(self, tokens: Tensor) -> Tensor:
        """Tokens (n, t, d) of pictures as the objective compares with."""
        return tokens

    def found(self, decoded: Tensor) -> Tensor:
        """Tokens (n, t * d) that pictures are searched with."""
        raise NotImplementedError

    def errors(self, decoded: Tensor, tokens: Tensor) -> Tensor:
        """Squared error (n,) of clean tokens, given those of the pictures (n, t, d)."""
        raise NotImplementedError

    def write_network(self, folder: Path, name: str) -> None:
        """Seal the pack that a bundle carries."""
        raise NotImplementedError
