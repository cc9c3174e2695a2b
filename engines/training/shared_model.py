"""What participants share, and the trials it is trained on (torch). Import this module inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rtdecode.decode.networks.backbone import Backbone, BackboneShape, Ridge
from rtdecode.decode.networks.prior import PriorNetwork


class Trials(NamedTuple):
    """Trials of one participant.

    Attributes
    ----------
    participant : int
        Which ridge layer reads them.
    betas : Tensor of shape (n, voxels)
        Standardised per voxel.
    tokens : Tensor of shape (n, tokens, dim)
        Of the pictures seen, as the embedder gives them.
    latent : Tensor of shape (n, 4, 28, 28) or None
        Blurry pictures, the target of the low-level branch.
    teacher, teacher_augmented : Tensor of shape (n, 49, 512) or None
        What a picture network says of the pictures, and of blurred ones.
    rows : Tensor of shape (n,), int64
        Which pictures they are.
    """

    participant: int
    betas: Tensor
    tokens: Tensor
    latent: Tensor | None
    teacher: Tensor | None
    teacher_augmented: Tensor | None
    rows: Tensor


class Learner(Protocol):
    """What `MindEye2Objective` trains: a Module whose parameters are trained.

    Attributes
    ----------
    ridge : callable
        Betas (n, ...) and number of the participant to what the backbone reads.
    backbone : callable
        To a `BackboneOutput`.
    """

    ridge: Any
    backbone: Any

    def condition(self, tokens: Tensor, trials: Sequence[Trials]) -> Tensor:
        """Make the prior's condition of the backbone's tokens."""
        ...

    def prior(
        self, noisy: Tensor, t: Tensor, condition: Tensor, *, keep_condition: Tensor, keep_image: Tensor
    ) -> Tensor:
        """Clean tokens of noisy ones; not asked for where the prior's weight is 0."""
        ...

    def extra(self, draw: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """More conditions and their clean tokens for the prior alone, or None."""
        ...


class SharedModel(nn.Module):  # type: ignore[misc]
    """Ridge layers, backbone and prior of MindEye2, with the published names of their parameters.

    Parameters
    ----------
    voxels : sequence of int
        Of each participant.
    shape : BackboneShape
    prior : PriorNetwork
    """

    def __init__(self, voxels: Sequence[int], shape: BackboneShape, prior: PriorNetwork) -> None:
        super().__init__()
        self.ridge = Ridge(voxels, shape.hidden)
        self.backbone = Backbone(shape)
        self.diffusion_prior = nn.ModuleDict({"net": prior})

    def condition(self, tokens: Tensor, trials: Sequence[Trials]) -> Tensor:  # noqa: ARG002 - for subclasses
        """Give the prior the backbone's tokens themselves."""
        return tokens

    def prior(
        self, noisy: Tensor, t: Tensor, condition: Tensor, *, keep_condition: Tensor, keep_image: Tensor
    ) -> Tensor:
        """Clean tokens of noisy ones (n, tokens, dim) at levels `t` (n,); see `PriorNetwork.forward`."""
        network = self.diffusion_prior["net"]
        clean: Tensor = network(noisy, t, condition, keep_condition=keep_condition, keep_image=keep_image)
        return clean

    def extra(self, draw: torch.Generator) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002 - for subclasses
        """More conditions and their clean tokens for the prior alone, or None."""
        return None
