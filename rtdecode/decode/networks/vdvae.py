"""The very deep VAE (Child 2021) whose first latents MIRAGE predicts: a picture of 64 px from coarse to fine.

Parameter names are those of the published checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_MEAN, _DEVIATION = 115.92961967, 69.37404
_SMALL = 2
"""Pixels up to which a block looks at each pixel alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VdvaeShape:
    """Sizes; the defaults are those of the published network of ImageNet at 64 px.

    Attributes
    ----------
    image_size : int
    enc_blocks, dec_blocks : str
        ``RxN``: N blocks at R px; ``RdK``: one, then its mean over K x K; ``RmS``: one that adds what was at S px.
    width, zdim : int
        Channels, and channels of a latent.
    bottleneck_multiple : float
        Inner channels of a block over its width.
    num_mixtures : int
        Logistics that a pixel is mixed of.
    no_bias_above : int
        Pixels up to which there is something to begin with.
    given : int
        Layers whose latents are given; those of the others are drawn.
    """

    image_size: int = 64
    enc_blocks: str = "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
    dec_blocks: str = "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"
    width: int = 512
    zdim: int = 16
    bottleneck_multiple: float = 0.25
    num_mixtures: int = 10
    no_bias_above: int = 64
    given: int = 31

    def layers(self) -> list[tuple[int, int | None]]:
        """Pixels of each decoder layer, and those of what it adds first."""
        found: list[tuple[int, int | None]] = []
        for word in self.dec_blocks.split(","):
            if "m" in word:
                px, source = (int(number) for number in word.split("m"))
                found.append((px, source))
            else:
                px, times = (int(number) for number in word.split("x"))
                found += [(px, None)] * times
        return found

    def sizes(self) -> list[int]:
        """Values of the latent of each layer."""
        return [self.zdim * px * px for px, _ in self.layers()]

    @property
    def given_size(self) -> int:
        """Values of all latents that are given."""
        return sum(self.sizes()[: self.given])

    @property
    def drawn_size(self) -> int:
        """Values of all latents that are drawn."""
        return sum(self.sizes()[self.given :])


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, inner: int, out: int, px: int, *, residual: bool = False, pool: int = 1) -> None:
        super().__init__()
        side = 3 if px > _SMALL else 1
        self.c1 = nn.Conv2d(width, inner, 1)
        self.c2 = nn.Conv2d(inner, inner, side, padding=side // 2)
        self.c3 = nn.Conv2d(inner, inner, side, padding=side // 2)
        self.c4 = nn.Conv2d(inner, out, 1)
        self._residual, self._pool = residual, pool

    def forward(self, x: Tensor) -> Tensor:
        found = x
        for layer in (self.c1, self.c2, self.c3, self.c4):
            found = layer(functional.gelu(found))
        found = x + found if self._residual else found
        return functional.avg_pool2d(found, self._pool) if self._pool > 1 else found


class _Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: VdvaeShape) -> None:
        super().__init__()
        inner = int(shape.width * shape.bottleneck_multiple)
        self.in_conv = nn.Conv2d(3, shape.width, 3, padding=1)
        blocks = []
        for word in shape.enc_blocks.split(","):
            px, number = (int(one) for one in word.replace("d", "x").split("x"))
            pool, times = (number, 1) if "d" in word else (1, number)
            blocks += [_Block(shape.width, inner, shape.width, px, residual=True, pool=pool) for _ in range(times)]
        self.enc_blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.in_conv(x)
        found = {x.shape[2]: x}
        for block in self.enc_blocks:
            x = block(x)
            found[x.shape[2]] = x
        return found


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: VdvaeShape, px: int, source: int | None) -> None:
        super().__init__()
        width, z = shape.width, shape.zdim
        inner = int(width * shape.bottleneck_multiple)
        self.px, self._source, self._z = px, source, z
        self.enc = _Block(2 * width, inner, 2 * z, px)
        self.prior = _Block(width, inner, 2 * z + width, px)
        self.z_proj = nn.Conv2d(z, width, 1)
        self.resnet = _Block(width, inner, width, px, residual=True)

    def before(self, held: dict[int, Tensor]) -> Tensor:
        """Return what this layer begins with."""
        x = held[self.px]
        if self._source is not None:
            x = x + functional.interpolate(held[self._source], scale_factor=self.px // self._source)
        return x

    def expected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log deviation of the latent without a picture, and what is added besides it."""
        mean, log_sigma, more = self.prior(x).split([self._z, self._z, x.shape[1]], 1)
        return mean, log_sigma, more

    def after(self, x: Tensor, more: Tensor, z: Tensor) -> Tensor:
        """Return what this layer leaves."""
        left: Tensor = self.resnet(x + more + self.z_proj(z))
        return left


class _Decoder(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: VdvaeShape) -> None:
        super().__init__()
        width = shape.width
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.dec_blocks = nn.ModuleList(_Layer(shape, px, source) for px, source in shape.layers())
        self._px = sorted({px for px, _ in shape.layers()})
        self.bias_xs = nn.ParameterList(
            nn.Parameter(torch.zeros(1, width, px, px)) for px in self._px if px <= shape.no_bias_above
        )
        self.out_net = nn.ModuleDict({"out_conv": nn.Conv2d(width, 10 * shape.num_mixtures, 1)})

    def start(self, n: int) -> dict[int, Tensor]:
        """Return what there is at each resolution before the first layer."""
        held = {bias.shape[2]: bias.expand(n, -1, -1, -1) for bias in self.bias_xs}
        width = self.gain.shape[1]
        for px in self._px:
            if px not in held:
                held[px] = self.gain.new_zeros(n, width, px, px)
        return held


class Vdvae(nn.Module):  # type: ignore[misc]
    """Latents to a picture's mixtures of logistics, and pictures to latents.

    Parameters
    ----------
    shape : VdvaeShape
    """

    def __init__(self, shape: VdvaeShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = _Encoder(shape)
        self.decoder = _Decoder(shape)

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Decode latents to mixtures.

        Parameters
        ----------
        latents : Tensor of shape (b, given_size)
            Of the first layers, each in C order of channel, row and column.
        noise : Tensor of shape (b, drawn_size)
            Standard normal: from it the latents of the others are drawn.

        Returns
        -------
        Tensor of shape (b, image_size, image_size, 10 * num_mixtures)
        """
        logits: Tensor = self.decoder.out_net["out_conv"](self.features(latents, noise))
        return logits.permute(0, 2, 3, 1)

    def features(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Compute what mixtures are made of: (b, width, image_size, image_size); all latents may be given."""
        held = self.decoder.start(latents.shape[0])
        given, drawn = 0, 0
        for layer, size in zip(self.decoder.dec_blocks, self.shape.sizes(), strict=True):
            x = layer.before(held)
            mean, log_sigma, more = layer.expected(x)
            if given < latents.shape[1]:
                z = latents[:, given : given + size].reshape(mean.shape)
                given += size
            else:
                z = mean + log_sigma.exp() * noise[:, drawn : drawn + size].reshape(mean.shape)
                drawn += size
            held[layer.px] = layer.after(x, more, z)
        x = held[self.shape.image_size]
        found: Tensor = self.decoder.gain * x + self.decoder.bias
        return found

    def encode(self, pictures: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode bytes (b, h, w, 3) as numbers to the latents of all layers, behind each other: (b, values).

        Parameters
        ----------
        pictures : Tensor
        noise : Tensor of shape (b, values) or None
            Standard normal: latents are drawn, as published; None takes the mean of each.
        """
        return self.posterior(pictures, noise)[0]

    def posterior(self, pictures: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents as of `encode`, and the means and log deviations that they were drawn with."""
        seen = self.encoder(encoder_input(pictures).permute(0, 3, 1, 2))
        held = self.decoder.start(pictures.shape[0])
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        at = 0
        for layer, size in zip(self.decoder.dec_blocks, self.shape.sizes(), strict=True):
            x = layer.before(held)
            mean, log_sigma = layer.enc(torch.cat([x, seen[layer.px]], 1)).chunk(2, 1)
            z = mean
            if noise is not None:
                z = mean + log_sigma.exp() * noise[:, at : at + size].reshape(mean.shape)
            at += size
            held[layer.px] = layer.after(x, layer.expected(x)[2], z)
            found.append((z, mean, log_sigma))
        latents, means, deviations = (
            torch.cat([one.flatten(1) for one in parts], 1) for parts in zip(*found, strict=True)
        )
        return latents, means, deviations


def encoder_input(pictures: Tensor) -> Tensor:
    """Scale bytes as the network was trained on them."""
    return (pictures - _MEAN) / _DEVIATION
