"""Few-step LoRAs of SDXL, fused into the unCLIP's UNet, which differs from SDXL's where it attends to the condition.

Layouts: kohya (``lora_unet_<module>.lora_down.weight``, modules in sgm's or diffusers' names with ``_`` for ``.``) and
diffusers (``unet.<module>.lora_A.weight`` of peft, ``.lora.down.weight`` and ``.processor.to_q_lora.down.weight`` of
before). What is added to a weight is ``up @ down * alpha / rank``; without an alpha it is the rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from engines.importing.keys import Ledger, check_finite
from engines.importing.weight_files import locate, read
from rtdecode.decode.families.mindeye2.mindeye2_description import LoraKind, LoraTable
from rtdecode.decode.sampling.edm import LEVELS
from rtdecode.errors import CheckpointError

KINDS: Final[tuple[LoraKind, ...]] = ("lightning", "hyper-sd", "dmd2", "lcm")
_NAMED: Final[dict[LoraKind, str]] = {"lightning": "lightning", "hyper-sd": "hyper", "dmd2": "dmd2", "lcm": "lcm"}
_USUAL_STEPS: Final[dict[LoraKind, int]] = {"dmd2": 4, "lcm": 4}
_SAMPLER: Final[dict[LoraKind, Literal["euler", "consistency"]]] = {
    "lightning": "euler",
    "hyper-sd": "euler",
    "dmd2": "consistency",
    "lcm": "consistency",
}
_LCM_LEVELS: Final = 50
_HYPER_ONE_STEP: Final = 800
_SIDES: Final = {
    "lora_down": "down", "lora_up": "up", "lora_A": "down", "lora_B": "up", "lora.down": "down", "lora.up": "up",
}  # fmt: skip
_KEY: Final = re.compile(
    r"(?P<module>.+?)\.(?:(?P<side>lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up)(?:\.default)?\.weight|"
    r"(?P<alpha>alpha))"
)
_PROCESSOR: Final = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_PREFIXES: Final = ("base_model.model.", "unet.", "model.diffusion_model.", "diffusion_model.", "lora_unet_")
_TEXT: Final = r"(lora_te\d?_|text_encoder(_2)?\.|te\d?\.).*"
_ALIASES: Final = {"class_embedding_": "add_embedding_"}
"""What this project's UNet calls otherwise than diffusers' SDXL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOrder:
    """A LoRA to fuse.

    Attributes
    ----------
    name : str
        Path or hub name of the file.
    kind : str or None
        Of `KINDS`; None: as the name of the file tells.
    steps : int or None
        That it was made for; None: as the name of the file tells, or what is usual.
    """

    name: str
    kind: LoraKind | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedLora:
    """What came of it.

    Attributes
    ----------
    state : dict of str to Tensor
        Weights of the UNet, those that were fused in float32.
    table : LoraTable
    dropped : dict of str to list of str
        Reasons, and the keys of the file that were left out for each.
    source : str
    """

    state: dict[str, Tensor]
    table: LoraTable
    dropped: dict[str, list[str]]
    source: str


def fuse(order: LoraOrder, state: Mapping[str, Tensor], sgm_names: Mapping[str, str], ignored: list[str]) -> FusedLora:
    """Fuse a LoRA into the weights of a UNet.

    Parameters
    ----------
    order : LoraOrder
    state : mapping of str to Tensor
        Of the UNet, in diffusers' names.
    sgm_names : mapping of str to str
        Modules in sgm's names to diffusers'.
    ignored : list of str
        Regular expressions of unexpected keys to leave out.

    Raises
    ------
    CheckpointError
        The file is not to be had, is no LoRA of SDXL's UNet, or does not say what it was made for.
    """
    path = locate(order.name)
    ledger = Ledger(path.name, read(path))
    ledger.drop(_TEXT, "of a text encoder, which the unCLIP has not")
    parts = _parts(ledger, ledger.take(""))
    modules = {key.removesuffix(".weight"): value for key, value in state.items() if key.endswith(".weight")}
    known = {_flat(name): name for name in modules}
    known |= {_flat(sgm): name for sgm, name in sgm_names.items() if name in modules}
    for own, theirs in _ALIASES.items():
        known |= {flat.replace(own, theirs): name for flat, name in known.items() if flat.startswith(own)}
    fused, left = dict(state), list[str]()
    for name, part in parts.items():
        if _flat(name) not in known:
            left += part.keys
            continue
        module = known[_flat(name)]
        added, weight = _added(path.name, name, part), modules[module]
        if added.shape != weight.shape:
            kind = "tokens of text" if ".attn2." in module else "another vector beside the time"
            reason = f"for {kind}: weights of {_sizes(added)}, the unCLIP's are {_sizes(weight)}"
            ledger.note(part.keys, reason)
            continue
        fused[f"{module}.weight"] = weight.float() + added
    for pattern in ignored:
        ledger.note([key for key in left if re.fullmatch(pattern, key)], f"the user said to ignore {pattern}")
    left = [key for key in left if not any(re.fullmatch(pattern, key) for pattern in ignored)]
    if left:
        raise CheckpointError(
            f"{path.name}: {len(left)} keys are of no layer of this UNet: {', '.join(sorted(left)[:8])}; is it a LoRA "
            "of SDXL? To leave keys out all the same, name them with --ignore"
        )
    count = sum(fused[key] is not value for key, value in state.items())
    if not count:
        raise CheckpointError(f"{path.name}: expected a LoRA of SDXL's UNet, got one that fits none of its layers")
    kind, steps = _made_for(order, path.stem)
    table = LoraTable(
        file=path.name,
        kind=kind,
        steps=steps,
        times=times_of(kind, steps),
        sampler=_SAMPLER[kind],
        guidance=1.0,
        fused=count,
    )
    return FusedLora(state=fused, table=table, dropped=ledger.close(ignored), source=path.name)


def times_of(kind: LoraKind, steps: int) -> list[int]:
    """Return the network's timesteps that a LoRA of a kind is sampled at, falling.

    Lightning and Hyper-SD: spaced from the end of the schedule (diffusers' ``trailing``), as DMD2's; one step of
    Hyper-SD at its own. LCM: spread over the 50 levels that it was distilled at (diffusers' ``LCMScheduler``).
    """
    if kind == "hyper-sd" and steps == 1:
        return [_HYPER_ONE_STEP]
    if kind == "lcm":
        levels = [(level + 1) * (LEVELS // _LCM_LEVELS) - 1 for level in range(_LCM_LEVELS)][::-1]
        return [levels[step * _LCM_LEVELS // steps] for step in range(steps)]
    return [round(LEVELS * (steps - step) / steps) - 1 for step in range(steps)]


@dataclass(slots=True, kw_only=True, eq=False)
class _Part:
    """What a file holds for one layer."""

    keys: list[str]
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


def _parts(ledger: Ledger, content: Mapping[str, Tensor]) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    strange = []
    for key, value in content.items():
        check_finite(ledger.source, key, value)
        plain = _PROCESSOR.sub(r"\1.\2.lora.\3.weight", key)
        found = _KEY.fullmatch(plain)
        if found is None:
            strange.append(key)
            continue
        name = found["module"]
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        part = parts.setdefault(name, _Part(keys=[]))
        part.keys.append(key)
        if found["alpha"]:
            part.alpha = float(value)
        else:
            setattr(part, _SIDES[found["side"]], value)
    if strange:
        raise CheckpointError(
            f"{ledger.source}: {len(strange)} keys are not of a LoRA in kohya's, diffusers' or peft's layout: "
            f"{', '.join(sorted(strange)[:8])}; convert it, or fuse it before the import"
        )
    return parts


def _added(source: str, name: str, part: _Part) -> Tensor:
    """Compute what is added to a layer's weights, float32."""
    if part.down is None or part.up is None:
        lacking = "down" if part.down is None else "up"
        raise CheckpointError(f"{source}: {name}: expected down and up weights, got no {lacking}: download it again")
    down, up = part.down.float(), part.up.float()
    rank = down.shape[0]
    if up.shape[1] != rank or any(size != 1 for size in up.shape[2:]):
        raise CheckpointError(
            f"{source}: {name}: expected up weights (out, {rank}) of rank {rank}, got {tuple(up.shape)}: download it "
            "again"
        )
    scale = (rank if part.alpha is None else part.alpha) / rank
    product = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
    return product * scale


def _made_for(order: LoraOrder, stem: str) -> tuple[LoraKind, int]:
    """Kind and number of steps, as told or as the name of the file tells."""
    lower = stem.lower()
    kind = order.kind or next((kind for kind in KINDS if _NAMED[kind] in lower), None)
    if kind is None:
        raise CheckpointError(
            f"{stem}: expected a name with {', '.join(_NAMED.values())} in it, to know the sampler: tell it with "
            f"--unclip-lora-kind ({', '.join(KINDS)})"
        )
    told = re.search(r"(\d+)[-_]?steps?", lower)
    steps = order.steps or (int(told[1]) if told else _USUAL_STEPS.get(kind))
    if steps is None:
        raise CheckpointError(f"{stem}: expected the number of steps in the name: tell it with --unclip-lora-steps")
    if not 1 <= steps <= _LCM_LEVELS:
        raise CheckpointError(f"steps of the LoRA: expected 1 to {_LCM_LEVELS}, got {steps}")
    return kind, steps


def _flat(name: str) -> str:
    """Name of a module as kohya writes it; diffusers' older names of attention's output lack a number."""
    return re.sub(r"_to_out$", "_to_out_0", name.replace(".", "_"))


def _sizes(weights: Tensor) -> str:
    return " x ".join(str(size) for size in weights.shape)


def sgm_modules(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of modules before and after a renaming that kept the tensors."""
    place = {value.data_ptr(): key for key, value in after.items()}
    found = {}
    for key, value in before.items():
        if key.endswith(".weight") and value.data_ptr() in place:
            found[key.removesuffix(".weight")] = place[value.data_ptr()].removesuffix(".weight")
    return found
