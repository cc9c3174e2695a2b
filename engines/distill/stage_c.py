"""Distil stage C of Stable Cascade in a pack of MIRAGE's imagery decoder (torch). Import this inside functions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor, nn

from engines.distill.consistency import distil
from engines.distill.judging import held_out, judge
from engines.distill.order import DistillOrder, plan_of, seal_student, trainable
from engines.distill.trials import check_shape, network_of
from engines.training.agreement import agreed
from engines.training.loop import Fitted, make_accelerator
from engines.training.rows import FileRows
from rtdecode.decode.families.distilled_table import DistilledTable
from rtdecode.decode.families.mirage_imagery.cascade_generator import PARTS, CascadeGenerator, Guides, mixed_guides
from rtdecode.decode.families.mirage_imagery.mirage_imagery_description import CascadeTable, MirageImageryDescription
from rtdecode.decode.networks.cascade import LEVEL_UNIT
from rtdecode.decode.runtime.runner import tensor_runner
from rtdecode.decode.sampling.gdf import gdf_schedule, rescaled_guidance
from rtdecode.errors import TrainingError
from rtdecode.packs import EnginePack, open_pack

LEVELS = 100
"""Noise levels of the training, evenly spaced along the path."""
FROM_NOISE, FROM_PICTURES = 4, 2
"""Evaluations a picture of students that start from noise, and from low-level pictures."""


class CleanLatents:
    """Clean latents by a stage C at `LEVELS` noise levels, guided by images alone, as in a session.

    Where sessions start from low-level pictures, the levels are those of the path from there.

    Parameters
    ----------
    pack : EnginePack
    device : torch.device
    """

    def __init__(self, pack: EnginePack, device: torch.device) -> None:
        said = pack.described(MirageImageryDescription)
        self.table = said.generator
        self.pictured = {"vdvae", "effnet"} <= said.stages.keys()
        start = self.table.strength if self.pictured else 1.0
        schedule = gdf_schedule(LEVELS, start=start, shift=self.table.shift_c)
        signal, noise, r = (part[:LEVELS][::-1] for part in (schedule.signal, schedule.noise, schedule.r))
        self.alphas_cumprod = signal.astype(np.float64) ** 2
        self._signal, self._noise = (torch.from_numpy(part.copy()).to(device) for part in (signal, noise))
        self._level = torch.from_numpy(np.rint(r.astype(np.float64) / LEVEL_UNIT).astype(np.int64)).to(device)
        empty = pack.tensors(said.empty_caption)
        self.empty = {"text": empty["text"], "pooled": empty["pooled"].reshape(1, -1)}
        self._text, self._pooled = (torch.from_numpy(part).float().to(device)[None] for part in self.empty.values())

    @property
    def student(self) -> CascadeTable:
        """How a student draws."""
        steps = FROM_PICTURES if self.pictured else FROM_NOISE
        return structs.replace(self.table, sampler_c="consistency", steps_c=steps, guidance_c=1.0)

    def guides(self, image: Any) -> Guides:
        """Return what a session guides stage C by, given an image embedding (1, d)."""
        return mixed_guides(image, None, self.empty["text"], self.empty["pooled"], self.table.text_share)

    def plain(self, network: nn.Module, noisy: Tensor, t: Tensor, image: Tensor) -> Tensor:
        """Clean latents of noisy ones (n, c, h, w) at levels (n,), given image embeddings (n, 1, d)."""
        return self._clean(noisy, t, self._eps(network, noisy, t, image))

    def guided(self, network: nn.Module, noisy: Tensor, t: Tensor, image: Tensor, guidance: float) -> Tensor:
        """Do as `plain`, guided, and each sample rescaled by itself: levels differ within a batch."""
        wanted = self._eps(network, noisy, t, image)
        if guidance != 1:
            unwanted = self._eps(network, noisy, t, torch.zeros_like(image))
            pairs = zip(wanted.split(1), unwanted.split(1), strict=True)
            wanted = torch.cat([rescaled_guidance(*pair, guidance, self.table.rescale) for pair in pairs])
        return self._clean(noisy, t, wanted)

    def _eps(self, network: nn.Module, noisy: Tensor, t: Tensor, image: Tensor) -> Tensor:
        n = len(noisy)
        text, pooled = self._text.expand(n, -1, -1), self._pooled.expand(n, -1, -1)
        found: Tensor = network(noisy, self._level[t], text, pooled, image).float()
        return found

    def _clean(self, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, level = (part[t][:, None, None, None] for part in (self._signal, self._noise))
        return (noisy - level * noise) / signal


def distil_stage_c(name: str, order: DistillOrder) -> tuple[str, Fitted]:
    """Distil stage C of a pack, its name or folder, and seal a copy with the student; returns the identity.

    Guidance by the image's absence, and its rescaling, are baked in. The student is called at few levels with fresh
    noise at each. Both are judged given the embeddings of held-out pictures, from where sessions start: from noise, or
    from low-level pictures, for which the pictures' own latents stand.

    Raises
    ------
    TrainingError, EngineError
        The pack draws nothing, or is guided by text too; the pictures are not of this pack; or the student lost more
        than the order allows.
    """
    accelerator = make_accelerator()
    device = accelerator.device
    with agreed(accelerator):
        pack = open_pack(name)
        said = pack.described(MirageImageryDescription)
        teacher, sizes = network_of(pack, "stage_c", device)
        if "image" not in said.tokens.groups or "text_head" in said.stages:
            raise TrainingError(
                f"pack {pack.name}: expected a pack for sessions, which guide stage C by the image alone: import "
                "it with --embedder and without --ridges"
            )
        if order.participants:
            raise TrainingError("stage C: expected no participants: it is distilled on embeddings of pictures")
        table = FileRows(order.pictures, {"latent": 4, "tokens": 3})
        check_shape(table, "tokens", (said.tokens.count, said.tokens.channels))
        check_shape(table, "latent", tuple(int(size) for size in said.stage("stage_c").inputs["x"][1:]))
        apart = held_out(np.arange(len(table)))
    made = CleanLatents(pack, device)
    group = slice(*said.tokens.groups["image"])
    trained_on = torch.from_numpy(np.setdiff1d(np.arange(len(table)), apart))

    def images(at: Tensor) -> Tensor:
        return table.rows("tokens", at)[:, :, group].reshape(len(at), 1, sizes["clip_image_in_channels"])

    def batches(draw: torch.Generator) -> tuple[Tensor, Any]:
        at = trained_on[torch.randint(len(trained_on), (order.batch,), generator=draw)]
        return table.rows("latent", at), images(at)

    student, fitted = distil(
        trainable(teacher),
        batches,
        predict=made.plain,
        teacher=lambda noisy, t, image: made.guided(teacher, noisy, t, image, order.guidance),
        alphas_cumprod=made.alphas_cumprod,
        how=order.how,
        plan=plan_of(pack, order),
        folder=order.out.parent,
        resume=order.resume,
        accelerator=accelerator,
    )
    if not accelerator.is_main_process:
        return "", fitted
    rows = torch.from_numpy(apart)
    truth = table.rows("latent", rows)
    starts = truth.to(device) if made.pictured else None
    by_teacher, by_student = [
        coarse_latents(pack, network.to(device).eval(), how, made.guides, images(rows), starts, order.plan.seed)
        for network, how in ((teacher, made.table), (student, made.student))
    ]
    judged = judge(by_teacher, by_student, truth, decoded=False, seed=order.plan.seed)

    def describe(came: DistilledTable) -> MirageImageryDescription:
        return structs.replace(said, name=order.out.name, generator=made.student, distilled=came, parts={})

    return seal_student(pack, order, "stage_c", student, judged, describe), fitted


def coarse_latents(
    pack: EnginePack,
    network: nn.Module,
    table: CascadeTable,
    guides: Callable[[Any], Guides],
    images: Tensor,
    starts: Tensor | None,
    seed: int,
) -> Tensor:
    """Sample stage C's latents (n, c, h, w), on the host, of image embeddings (n, 1, d), one by one as sessions do.

    `starts` (n, c, h, w) are latents to begin from; None begins from noise.
    """

    def compute(values: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"noise": network(*(values[name] for name in pack.description.stage("stage_c").inputs))}

    device = next(network.parameters()).device
    generator = CascadeGenerator(pack, tensor_runner(PARTS, lambda _: compute, device=str(device)), table)
    begun = [None] * len(images) if starts is None else list(starts.split(1))
    return torch.cat(
        [
            generator.coarse(guides(image), start, 1, seed=seed + i).cpu()
            for i, (image, start) in enumerate(zip(images.cpu().numpy(), begun, strict=True))
        ]
    )
