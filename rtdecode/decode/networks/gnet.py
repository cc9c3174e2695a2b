"""GNet, the image-to-voxel encoding network of the NSD papers; parameter names are those of the published file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

GNET_PX = 227
_AT_ONCE = 2048
_FIRST, _SECOND = 25, 13
_PLACES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GNetShape:
    """Sizes of GNet.

    Attributes
    ----------
    voxels : list of int
        Of each participant.
    trunk, pass_through : int
        Channels of the shared trunk.
    """

    voxels: list[int]
    trunk: int = 64
    pass_through: int = 192

    @property
    def channels(self) -> tuple[int, int]:
        """Of the two feature maps, 25 x 25 and 13 x 13."""
        return 128 + 2 * self.trunk, 4 * self.trunk


class GNet(nn.Module):  # type: ignore[misc]
    """Pictures (b, 3, 227, 227) in 0..1 to voxels of each participant, in the units of NSD's z-scored betas.

    Parameters
    ----------
    shape : GNetShape
    """

    def __init__(self, shape: GNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.enc = GNetTrunk(shape)
        self.fwrfs = nn.ModuleList(GNetReadout(shape, voxels) for voxels in shape.voxels)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Predict every participant's voxels, (b, voxels) each."""
        maps = self.enc(picture)
        return tuple(readout(maps) for readout in self.fwrfs)

    def seen(self, picture: Tensor) -> Tensor:
        """Return what all participants' readouts look at, coarsely: both maps in 5 x 5 places, (b, 25, channels)."""
        maps = [functional.adaptive_avg_pool2d(_compressed(one), _PLACES).flatten(2) for one in self.enc(picture)]
        return torch.cat(maps, 1).transpose(1, 2)


class GNetTrunk(nn.Module):  # type: ignore[misc]
    """Two feature maps of a picture."""

    def __init__(self, shape: GNetShape) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.pre = _PreFilter()
        self.enc = _Stage(shape)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps (b, c, 25, 25) and (b, c, 13, 13)."""
        early, late = self.enc(self.pre(picture - self.mu))
        return early, late


class _PreFilter(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2))
        self.conv2 = nn.Sequential(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU())

    def forward(self, picture: Tensor) -> Tensor:
        return self.conv2(self.conv1(picture))


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(given)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv1(self.bn1(x)))


class _Stage(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: GNetShape) -> None:
        super().__init__()
        both = shape.trunk + shape.pass_through
        self.trunk = shape.trunk
        self.conv3 = nn.Conv2d(192, 128, 3)
        self.bn1 = nn.BatchNorm2d(192)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv4a = _Block(128, both)
        self.conv5a, self.conv6a, self.conv4b, self.conv5b = (_Block(both, both) for _ in range(4))
        self.conv6b = _Block(both, shape.trunk)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = functional.relu(self.conv3(self.bn1(x)))
        fourth = self.conv4a(first)
        fourth_too = self.conv4b(fourth)
        fifth = self.conv5a(self.pool1(fourth_too))
        fifth_too = self.conv5b(fifth)
        sixth = self.conv6a(fifth_too)
        n = self.trunk
        early = torch.cat([first, fourth[:, :n], fourth_too[:, :n]], 1)
        return early, torch.cat([fifth[:, :n], fifth_too[:, :n], sixth[:, :n], self.conv6b(sixth)], 1)


class GNetReadout(nn.Module):  # type: ignore[misc]
    """A place in each map and a weight of each channel for every voxel."""

    def __init__(self, shape: GNetShape, voxels: int) -> None:
        super().__init__()
        self.rf0 = nn.Parameter(torch.zeros(voxels, _FIRST, _FIRST))
        self.rf1 = nn.Parameter(torch.zeros(voxels, _SECOND, _SECOND))
        self.w = nn.Parameter(torch.zeros(voxels, sum(shape.channels)))
        self.b = nn.Parameter(torch.zeros(voxels))

    def forward(self, maps: tuple[Tensor, Tensor]) -> Tensor:
        """Predict voxels (b, v), some at a time: what each sees of each picture is large."""
        seen = [_compressed(one).flatten(2) for one in maps]
        found = []
        for first in range(0, len(self.b), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            fields = [one[some].flatten(1).softmax(1) for one in (self.rf0, self.rf1)]
            pooled = torch.cat([one @ field.T for one, field in zip(seen, fields, strict=True)], 1)
            found.append((_compressed(pooled) * self.w[some].T).sum(1))
        return torch.cat(found, 1) + self.b


def _compressed(x: Tensor) -> Tensor:
    return torch.log1p(x.abs()) * x.tanh()
