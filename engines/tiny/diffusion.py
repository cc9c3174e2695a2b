"""The tiny pack's unCLIP: a small autoencoder and a UNet that denoises its latents (torch).

Import this module inside functions only.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from engines.tiny import layout
from engines.tiny.networks import Residual
from rtdecode.decode.networks.context import cross_attentions
from rtdecode.decode.sampling.edm import network_sigmas

LATENT_CHANNELS = 8
LATENT_SIDE = 16
CONTEXT_CHANNELS = 64
_LATENT_NOISE = 0.1


class TinyAutoencoder(nn.Module):  # type: ignore[misc]
    """Pictures (b, 3, 64, 64) in 0..1 to latents (b, 8, 16, 16) of unit variance, and back beside a draft.

    In training the latents are given noise, so that the decoder forgives what a denoiser leaves. What the decoder takes
    from the draft picture is learned last, the encoder being fixed: until then it is nothing.
    """

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        w = width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, w, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(w, 2 * w, 4, 2, 1),
            Residual(2 * w),
            Residual(2 * w),
            nn.Conv2d(2 * w, LATENT_CHANNELS, 1),
        )
        self.scale = nn.BatchNorm2d(LATENT_CHANNELS, affine=False, momentum=0.02)
        self.enter = nn.Conv2d(LATENT_CHANNELS, 2 * w, 3, padding=1)
        self.low = nn.Sequential(Residual(2 * w), Residual(2 * w), nn.Conv2d(2 * w, w, 1))
        self.high = nn.Sequential(Residual(w), Residual(w), nn.SiLU(), nn.Conv2d(w, 4 * 12, 3, padding=1))
        self.polish = nn.Conv2d(12, 3, 3, padding=1)
        self.draft_low = nn.Conv2d(3 * 16, 2 * w, 1, bias=False)
        self.draft_high = nn.Conv2d(3 * 4, w, 3, padding=1, bias=False)
        self.draft_last = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        for layer in (self.draft_low, self.draft_high, self.draft_last):
            nn.init.zeros_(layer.weight)

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents."""
        latents: Tensor = self.scale(self.encoder(pictures * 2 - 1).float())
        return latents

    def forward(self, latents: Tensor, draft: Tensor) -> Tensor:
        """Pictures of latents, with a draft (b, 3, 64, 64) to take detail from."""
        seen = draft * 2 - 1
        low = self.low(self.enter(latents) + self.draft_low(functional.pixel_unshuffle(seen, 4)))
        high = functional.interpolate(low, scale_factor=2.0, mode="nearest")
        high = self.high(high + self.draft_high(functional.pixel_unshuffle(seen, 2)))
        last = self.polish(functional.silu(functional.pixel_shuffle(high, 2))) + self.draft_last(seen)
        return torch.sigmoid(last.float())

    def blur(self, latents: Tensor, draw: torch.Generator) -> Tensor:
        """Latents with the noise of training."""
        return latents + _LATENT_NOISE * torch.randn(latents.shape, generator=draw).to(latents)


class PackedCrossAttention:
    """Attention whose keys and values were computed before, packed side by side in place of the context.

    The keys and values of the image tokens are the same at every step, so they are computed once a picture.

    Parameters
    ----------
    first : int
        Channel of the packed context at which this layer's keys start; its values follow.
    """

    def __init__(self, first: int) -> None:
        self._first = first

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        """Attend; `encoder_hidden_states` (b, t, packed) holds keys and values of all layers."""
        width = attn.to_k.out_features
        keys = encoder_hidden_states[..., self._first : self._first + width]
        values = encoder_hidden_states[..., self._first + width : self._first + 2 * width]
        query = attn.to_q(hidden_states)
        query, keys, values = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, keys, values))
        out = functional.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype))
        joined: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return joined


class TinyUnclip(nn.Module):  # type: ignore[misc]
    """Denoises latents given tokens and a draft picture's latents.

    The network sees noisy and draft latents, and the tokens by cross-attention. Between draft and noisy latents the
    posterior mean is known for a Gaussian of deviation `residual` about the draft; the network predicts what is
    left, in units of the posterior deviation. So an untrained network gives the draft, and at the last noise level the
    latents themselves, as a consistency function must (Song et al. 2023).
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128)) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=2 * LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=widths,
            layers_per_block=1,
            norm_num_groups=16,
            cross_attention_dim=CONTEXT_CHANNELS,
            attention_head_dim=[width // 32 for width in widths],
            use_linear_projection=True,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        self.read = nn.Linear(layout.CHANNELS, CONTEXT_CHANNELS)
        self.place = nn.Parameter(0.5 * torch.randn(layout.TOKENS, CONTEXT_CHANNELS))
        self.register_buffer("token_mean", torch.zeros(layout.TOKENS, layout.CHANNELS))
        self.register_buffer("token_std", torch.ones(layout.TOKENS, layout.CHANNELS))
        self.register_buffer("unconditional", torch.randn(layout.TOKENS, layout.CHANNELS))
        self.register_buffer("residual", torch.tensor(1.0))
        sigmas = torch.from_numpy(network_sigmas())
        self.register_buffer("sigmas", sigmas, persistent=False)
        first = 0
        for layer in cross_attentions(self.unet):
            layer.set_processor(PackedCrossAttention(first))
            first += 2 * layer.to_k.out_features

    def context(self, tokens: Tensor) -> Tensor:
        """Keys and values (b, TOKENS, packed) of tokens (b, TOKENS, CHANNELS) for every cross-attention layer."""
        seen = self.read((tokens - self.token_mean) / self.token_std) + self.place
        layers = cross_attentions(self.unet)
        return torch.cat([part(seen) for layer in layers for part in (layer.to_k, layer.to_v)], -1)

    def clean(self, noisy: Tensor, t: Tensor, draft: Tensor, context: Tensor) -> Tensor:
        """Clean latents (b, 8, 16, 16).

        Parameters
        ----------
        noisy : Tensor of shape (b, 8, 16, 16)
            Latents of unit variance at noise level `t`.
        t : Tensor of shape (b,), int64
            0 to 999.
        draft : Tensor of shape (b, 8, 16, 16)
        context : Tensor of shape (b, TOKENS, packed)
        """
        sigma = self.sigmas[t][:, None, None, None]
        signal = (1 + sigma.square()).rsqrt()
        noise = sigma * signal
        spread = (signal.square() * self.residual.square() + noise.square()).sqrt()
        away = noisy - signal * draft
        left = self.unet(torch.cat([away / spread, draft], 1), t, context).sample.float()
        gain = signal * self.residual.square() / spread.square()
        return draft + gain * away + (self.residual * noise / spread) * left

    def forward(self, noisy: Tensor, t: Tensor, draft: Tensor, context: Tensor) -> Tensor:
        """Noise in noisy latents, as the sampler of the published unCLIP wants it; see `clean`."""
        sigma = self.sigmas[t][:, None, None, None]
        signal = (1 + sigma.square()).rsqrt()
        return (noisy - signal * self.clean(noisy, t, draft, context)) / (sigma * signal)
