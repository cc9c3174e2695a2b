"""Networks of the tiny pack (torch). Import this module inside functions only.

Every network that is exported takes and returns plain tensors with the batch first.
"""

from __future__ import annotations

import itertools
import math

import open_clip.transformer
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.tiny import layout
from rtdecode.simulate.world import CATEGORIES, PICTURE_PX, SIZE_RANGE, TILT_RANGE_DEG

_SCRAMBLED = CATEGORIES.index("scrambled")
_WAVES = (2.0, 4.0, 8.0, 16.0, 32.0)


def assemble(code: Tensor, spatial: Tensor) -> Tensor:
    """Tokens (b, TOKENS, CHANNELS) of a semantic code (b, CODE) and spatial tokens (b, 16, CHANNELS)."""
    blocks = [
        functional.pad(scale * code[:, part], (0, layout.CHANNELS - (part.stop - part.start)))
        for part, scale in zip(layout.code_slices(), layout.BLOCK_SCALES, strict=True)
    ]
    return torch.cat([torch.stack(blocks, 1), spatial], 1)


def read_code(tokens: Tensor) -> Tensor:
    """Semantic code (b, CODE) of tokens: the inverse of `assemble`."""
    parts = [
        tokens[:, i, :n] / scale for i, (n, scale) in enumerate(zip(layout.BLOCKS, layout.BLOCK_SCALES, strict=True))
    ]
    return torch.cat(parts, 1)


class Residual(nn.Module):  # type: ignore[misc]
    """Two 3 x 3 convolutions with a skip; optionally modulated by a vector (FiLM, Perez et al. 2018)."""

    def __init__(self, channels: int, condition: int = 0) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels) if condition else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the same shape as `x`."""
        h = self.first(functional.silu(self.norm(x)))
        if self.film is not None:
            scale, shift = self.film(condition).chunk(2, 1)
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return x + self.second(functional.silu(h))


class TinyEmbedder(nn.Module):  # type: ignore[misc]
    """Picture (b, 3, 64, 64) in 0..1 to tokens (b, TOKENS, CHANNELS)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.trunk = nn.Sequential(
            nn.Conv2d(3, w, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(w, 2 * w, 4, 2, 1),
            Residual(2 * w),
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1),
            Residual(4 * w),
            nn.Conv2d(4 * w, 6 * w, 4, 2, 1),
            Residual(6 * w),
            nn.GroupNorm(8, 6 * w),
            nn.SiLU(),
        )
        self.spatial = nn.Conv2d(6 * w, layout.CHANNELS, 1)
        self.squeeze = nn.Conv2d(6 * w, 2 * w, 1)
        self.head = nn.Sequential(nn.Linear(2 * w * layout.GRID**2, 256), nn.SiLU(), nn.Linear(256, layout.CODE))

    def logits(self, features: Tensor) -> Tensor:
        """Category, colour and background logits and geometry (b, CODE) from trunk features."""
        out: Tensor = self.head(functional.silu(self.squeeze(features)).flatten(1)).float()
        return out

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (b, CODE) and tokens."""
        features = self.trunk(pictures * 2 - 1)
        logits = self.logits(features)
        spatial = functional.layer_norm(self.spatial(features).flatten(2).transpose(1, 2).float(), (layout.CHANNELS,))
        return logits, assemble(soft_code(logits), layout.SPATIAL_SCALE * spatial)

    def forward(self, pictures: Tensor) -> Tensor:
        """Tokens only."""
        return self.encode(pictures)[1]


def soft_code(logits: Tensor) -> Tensor:
    """Code with class probabilities in place of one-hots; facing and style bounded by their level."""
    category, colour, background, geometry = (logits[:, part] for part in layout.code_slices())
    binary = layout.BINARY_LEVEL * torch.tanh(geometry[:, layout.CONTINUOUS :])
    classes = [category.softmax(1), colour.softmax(1), background.softmax(1)]
    return torch.cat([*classes, geometry[:, : layout.CONTINUOUS], binary], 1)


class TinyDecoder(nn.Module):  # type: ignore[misc]
    """Tokens to a picture (b, 3, 64, 64) in 0..1.

    The code's size and position become a coordinate frame that moves with the object; the category and attributes
    modulate every layer; the spatial tokens are upsampled through it.
    """

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.condition = nn.Sequential(nn.Linear(layout.CODE, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        sides = (4, 8, 16, PICTURE_PX)
        widths = (128, 128, 2 * width, width)
        frame = 2 * (1 + 2 * len(_WAVES)) + 2
        self.enter = nn.Conv2d(layout.CHANNELS, widths[0], 1)
        self.frames = nn.ModuleList(nn.Conv2d(frame * (4 if w == width else 1), w, 1) for w in widths)
        self.blocks = nn.ModuleList(Residual(w, 128) for w in widths)
        self.refine = Residual(widths[-1], 128)
        self.steps = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths))
        self.leave = nn.Conv2d(widths[-1], 4 * 12, 3, padding=1)
        self.polish = nn.Conv2d(12, 3, 3, padding=1)
        for i, side in enumerate(sides):
            at = (torch.arange(side) + 0.5) / side
            grid = torch.stack([at[None, :].expand(side, side), at[:, None].expand(side, side)])
            self.register_buffer(f"grid{i}", grid[None], persistent=False)

    def _frame(self, grid: Tensor, geometry: Tensor) -> Tensor:
        """Coordinates that are upright, centred and of unit size in the object, as waves; and those of the picture."""
        low, high = SIZE_RANGE
        size, x, y, tilt, facing = (geometry[:, i, None, None] for i in range(5))
        half = 0.5 * (low + (high - low) * 0.5 * (size.clamp(-1.0, 1.0) + 1))
        right = (grid[:, 0] - 0.5 - x * (0.5 - half)) / half
        down = (grid[:, 1] - 0.5 - y * (0.5 - half)) / half
        angle = tilt * math.radians(TILT_RANGE_DEG[1])
        mirror = torch.where(facing < 0, -1.0, 1.0)  # some objects are symmetric: their facing is near 0
        u = (angle.cos() * right + angle.sin() * down) * mirror
        v = angle.cos() * down - angle.sin() * right
        own = torch.stack([u, v], 1).clamp(-1.5, 1.5)
        waves = [own, *(f(own * k) for k in _WAVES for f in (torch.sin, torch.cos))]
        return torch.cat([*waves, grid.expand(own.shape[0], -1, -1, -1)], 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Picture."""
        code = read_code(tokens)
        geometry = code[:, layout.code_slices()[-1]]
        condition = self.condition(code)
        spatial = tokens[:, layout.SEMANTIC_TOKENS :].transpose(1, 2) / layout.SPATIAL_SCALE
        h = self.enter(spatial.reshape(-1, layout.CHANNELS, layout.GRID, layout.GRID))
        for i, block in enumerate(self.blocks):
            frame = self._frame(getattr(self, f"grid{i}"), geometry)
            last = i == len(self.steps)
            h = h + self.frames[i](functional.pixel_unshuffle(frame, 2) if last else frame)
            h = block(h, condition)
            if not last:
                h = functional.interpolate(self.steps[i](h), scale_factor=2.0, mode="nearest")
        h = self.refine(h, condition)
        picture = self.polish(functional.silu(functional.pixel_shuffle(self.leave(functional.silu(h)), 2)))
        return torch.sigmoid(picture.float())


class TinyPrior(nn.Module):  # type: ignore[misc]
    """Noisy, shrunk tokens and their estimated R2 to clean tokens, by committing.

    Step 1 judges category, colour and background and regresses the geometry. Step 2 regresses the spatial tokens given
    the noisy ones *and* the code committed to, so that a wrong guess still gives the picture of something.
    """

    def __init__(self, components: int = 160, hidden: int = 512) -> None:
        super().__init__()
        n_spatial = layout.VALUES - layout.SEMANTIC_VALUES
        self.register_buffer("code_mean", torch.zeros(layout.CODE))
        self.register_buffer("code_std", torch.ones(layout.CODE))
        self.register_buffer("spatial_mean", torch.zeros(n_spatial))
        self.register_buffer("basis", torch.zeros(components, n_spatial))
        self.register_buffer("std", torch.ones(components))
        seen = layout.CODE + components
        self.judge_in = nn.Linear(2 * seen + 2, hidden)
        self.judge_mid = nn.Linear(hidden, hidden)
        self.judge_out = nn.Linear(hidden, layout.CODE)
        self.spatial_in = nn.Linear(2 * seen + 2 + layout.CODE, hidden)
        self.spatial_mid = nn.Linear(hidden, hidden)
        self.spatial_out = nn.Linear(hidden, components)

    def see(self, tokens: Tensor, r2: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened evidence (b, 2 (CODE + components) + 2) and the whitened spatial components (b, components)."""
        code = (read_code(tokens) - self.code_mean) / self.code_std
        spatial = (tokens[:, layout.SEMANTIC_TOKENS :].flatten(1) - self.spatial_mean) @ self.basis.T / self.std
        r2 = r2.clamp(0.0, 0.98)
        gain = torch.cat([code / (r2[:, :1] + 0.03).sqrt(), spatial / (r2[:, 1:] + 0.03).sqrt()], 1)
        odds = torch.cat([code / (1.05 - r2[:, :1]), spatial / (1.05 - r2[:, 1:])], 1)
        return torch.cat([gain, odds.clamp(-8.0, 8.0), r2], 1), spatial

    def judge(self, seen: Tensor) -> Tensor:
        """Logits of the classes and regressed geometry (b, CODE)."""
        h = functional.silu(self.judge_in(seen))
        h = h + functional.silu(self.judge_mid(h))
        out: Tensor = self.judge_out(h)
        return out

    def commit(self, logits: Tensor) -> Tensor:
        """Code with the likeliest classes one-hot; nowhere in particular for a scrambled picture."""
        category, colour, background, geometry = (logits[:, part] for part in layout.code_slices())
        hots = [
            functional.one_hot(part.argmax(1), part.shape[1]).to(logits.dtype)
            for part in (category, colour, background)
        ]
        continuous, binary = geometry[:, : layout.CONTINUOUS], geometry[:, layout.CONTINUOUS :]
        binary = torch.where(binary > 0, layout.BINARY_LEVEL, -layout.BINARY_LEVEL).to(logits.dtype)
        place = torch.cat([continuous.clamp(-1.0, 1.0), binary], 1) * (1 - hots[0][:, -1:])
        return torch.cat([*hots, place], 1)

    def fill(self, seen: Tensor, spatial: Tensor, code: Tensor) -> Tensor:
        """Clean whitened spatial components (b, components) given the code committed to."""
        h = functional.silu(self.spatial_in(torch.cat([seen, (code - self.code_mean) / self.code_std], 1)))
        h = h + functional.silu(self.spatial_mid(h))
        out: Tensor = self.spatial_out(h) + spatial
        return out

    def compose(self, code: Tensor, spatial: Tensor) -> Tensor:
        """Tokens of a code and whitened spatial components."""
        flat = (spatial * self.std) @ self.basis + self.spatial_mean
        return assemble(code, flat.reshape(-1, layout.TOKENS - layout.SEMANTIC_TOKENS, layout.CHANNELS))

    def forward(self, tokens: Tensor, r2: Tensor, category_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Clean tokens and category probabilities (b, 8).

        `category_bias` (b, 8) is added to the category logits before committing: zeros, or a large value at a category
        chosen elsewhere.
        """
        seen, spatial = self.see(tokens, r2)
        logits = self.judge(seen)
        category = logits[:, layout.code_slices()[0]] + category_bias
        code = self.commit(torch.cat([category, logits[:, layout.code_slices()[0].stop :]], 1))
        filled = self.fill(seen, spatial, code)
        # The mean of many scrambled pictures is an even grey: give such a texture the contrast that shrinkage took.
        contrast = (r2[:, 1:].clamp(0.0, 1.0) + 0.03).rsqrt()
        filled = filled * (1 + code[:, _SCRAMBLED : _SCRAMBLED + 1] * (contrast - 1))
        return self.compose(code, filled), category.softmax(1)


class Captioner(nn.Module):  # type: ignore[misc]
    """Tokens to word numbers (b, CAPTION_LENGTH), greedily, and the probability of each (b, CAPTION_LENGTH)."""

    def __init__(self, n_words: int, hidden: int = 128) -> None:
        super().__init__()
        self.enter = nn.Linear(layout.CODE, hidden)
        self.words = nn.Embedding(n_words, 32)
        self.cell = nn.GRUCell(32 + layout.CODE, hidden)
        self.leave = nn.Linear(hidden, n_words)

    def step(self, code: Tensor, state: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the next word and the next state."""
        state = self.cell(torch.cat([self.words(word), code], 1), state)
        return self.leave(state), state

    def teach(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Logits (b, CAPTION_LENGTH, words) with the true previous words."""
        code = read_code(tokens)
        state = torch.tanh(self.enter(code))
        word = torch.full_like(ids[:, 0], layout.PAD)
        out = []
        for i in range(layout.CAPTION_LENGTH):
            logits, state = self.step(code, state, word)
            out.append(logits)
            word = ids[:, i]
        return torch.stack(out, 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy caption."""
        code = read_code(tokens)
        state = torch.tanh(self.enter(code))
        word = torch.full_like(code[:, 0], layout.PAD).long()
        ids, probabilities = [], []
        for _ in range(layout.CAPTION_LENGTH):
            logits, state = self.step(code, state, word)
            probability, word = logits.softmax(1).max(1)
            ids.append(word)
            probabilities.append(probability)
        return torch.stack(ids, 1), torch.stack(probabilities, 1)


def text_tower(n_words: int) -> nn.Module:
    """open_clip's text transformer at small size: word numbers (b, CAPTION_LENGTH) to (b, 64)."""
    return open_clip.transformer.TextTransformer(
        context_length=layout.CAPTION_LENGTH,
        vocab_size=n_words,
        width=96,
        heads=3,
        layers=2,
        output_dim=64,
        pool_type="last",
    )


class PictureProjection(nn.Module):  # type: ignore[misc]
    """Tokens to the space shared with captions (b, 64), for the contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(layout.CODE, 64)
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, tokens: Tensor) -> Tensor:
        """Projection of the semantic tokens."""
        out: Tensor = self.project(read_code(tokens))
        return out


class Critic(nn.Module):  # type: ignore[misc]
    """Classifier whose inner features measure perceptual distance; trained on the same pictures as its pupils."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 24, 4, 2, 1), nn.SiLU())
        self.mid = nn.Sequential(nn.Conv2d(24, 48, 4, 2, 1), nn.SiLU())
        self.high = nn.Sequential(nn.Conv2d(48, 96, 4, 2, 1), nn.SiLU())
        self.leave = nn.Linear(96 * 64, layout.CODE)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Feature maps at 32, 16 and 8 px."""
        low = self.low(pictures * 2 - 1)
        mid = self.mid(low)
        return [low, mid, self.high(mid)]

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits and geometry as `Embedder.logits`."""
        out: Tensor = self.leave(self.features(pictures)[-1].flatten(1)).float()
        return out


class Judge(nn.Module):  # type: ignore[misc]
    """Names the category of a picture (b, 8); another design, other data, never part of a loss of the pack."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.leave = nn.Linear(2 * widths[-1], 8)

    def forward(self, pictures: Tensor) -> Tensor:
        """Category logits."""
        h = self.body(pictures - 0.5).flatten(2)
        out: Tensor = self.leave(torch.cat([h.mean(2), h.amax(2)], 1).float())
        return out


def picture_shape() -> tuple[int, int, int]:
    """Shape of a picture, channels first."""
    return 3, PICTURE_PX, PICTURE_PX
