"""Few-step LoRAs of SDXL and of Stable Diffusion 1, fused into UNets that are, or nearly are, of their layout.

MindEye2's unCLIP differs from SDXL where it attends to the condition; MindEye1's generators are of SD 1's layout.

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
from rtdecode.decode.families.lora_table import LoraKind
from rtdecode.decode.families.mindeye1.mindeye1_description import GeneratorLora
from rtdecode.decode.families.mindeye2.mindeye2_description import UnclipLora
from rtdecode.decode.sampling.students import LCM_LEVELS, StudentSampler, lcm_times, trailing_times
from rtdecode.errors import CheckpointError

_NAMED: Final[dict[LoraKind, str]] = {"lightning": "lightning", "hyper-sd": "hyper", "dmd2": "dmd2", "lcm": "lcm"}
_USUAL_STEPS: Final[dict[LoraKind, int]] = {"dmd2": 4, "lcm": 4}
_SAMPLER: Final[dict[LoraKind, Literal["euler", "consistency"]]] = {
    "lightning": "euler",
    "hyper-sd": "euler",
    "dmd2": "consistency",
    "lcm": "consistency",
}
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Host:
    """The network that LoRAs are fused into.

    Attributes
    ----------
    network, base : str
        Its name, and that of the public network whose LoRAs it takes, for messages.
    option : str
        Of the command.
    kinds : tuple of str
        That there are for `base`.
    aliases : dict of str to str
        Beginnings of modules that it calls otherwise than diffusers does in `base`, flat.
    differs : bool
        Whether some layers are of other sizes than those of `base`, and stay as they are.
    """

    network: str
    base: str
    option: str
    kinds: tuple[LoraKind, ...]
    aliases: Mapping[str, str]
    differs: bool


UNCLIP: Final = Host(
    network="the unCLIP",
    base="SDXL",
    option="--unclip-lora",
    kinds=("lightning", "hyper-sd", "dmd2", "lcm"),
    aliases={"class_embedding_": "add_embedding_"},
    differs=True,
)
GENERATOR: Final = Host(
    network="the generator",
    base="Stable Diffusion 1",
    option="--generator-lora",
    kinds=("hyper-sd", "lcm"),
    aliases={},
    differs=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOrder:
    """A LoRA to fuse.

    Attributes
    ----------
    name : str
        Path or hub name of the file.
    kind : str or None
        None: as the name of the file tells.
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
    kind : str
    steps : int
        That it was made for.
    fused : int
        Layers that it changed.
    dropped : dict of str to list of str
        Reasons, and the keys of the file that were left out for each.
    source : str
        Name of the file.
    """

    state: dict[str, Tensor]
    kind: LoraKind
    steps: int
    fused: int
    dropped: dict[str, list[str]]
    source: str


def fuse(
    order: LoraOrder, host: Host, state: Mapping[str, Tensor], sgm_names: Mapping[str, str], ignored: list[str]
) -> FusedLora:
    """Fuse a LoRA into the weights of a UNet.

    Parameters
    ----------
    order : LoraOrder
    host : Host
    state : mapping of str to Tensor
        Of the UNet, in diffusers' names.
    sgm_names : mapping of str to str
        Modules in sgm's names to diffusers'.
    ignored : list of str
        Regular expressions of unexpected keys to leave out.

    Raises
    ------
    CheckpointError
        The file is not to be had, is no LoRA of the host's public network, or does not say what it was made for.
    """
    path = locate(order.name)
    ledger = Ledger(path.name, read(path))
    ledger.drop(_TEXT, f"of a text encoder, which {host.network} has not")
    parts = _parts(ledger, ledger.take(""))
    modules = {key.removesuffix(".weight"): value for key, value in state.items() if key.endswith(".weight")}
    known = {_flat(name): name for name in modules}
    known |= {_flat(sgm): name for sgm, name in sgm_names.items() if name in modules}
    for own, theirs in host.aliases.items():
        known |= {flat.replace(own, theirs): name for flat, name in known.items() if flat.startswith(own)}
    fused, left = dict(state), list[str]()
    for name, part in parts.items():
        if _flat(name) not in known:
            left += part.keys
            continue
        module = known[_flat(name)]
        added, weight = _added(path.name, name, part), modules[module]
        if added.shape != weight.shape:
            if not host.differs:
                raise CheckpointError(
                    f"{path.name}: {name}: expected weights of {_sizes(weight)}, got {_sizes(added)}: is it a LoRA of "
                    f"{host.base}?"
                )
            kind = "tokens of text" if ".attn2." in module else "another vector beside the time"
            reason = f"for {kind}: weights of {_sizes(added)}, {host.network}'s are {_sizes(weight)}"
            ledger.note(part.keys, reason)
            continue
        fused[f"{module}.weight"] = weight.float() + added
    for pattern in ignored:
        ledger.note([key for key in left if re.fullmatch(pattern, key)], f"the user said to ignore {pattern}")
    left = [key for key in left if not any(re.fullmatch(pattern, key) for pattern in ignored)]
    if left:
        raise CheckpointError(
            f"{path.name}: {len(left)} keys are of no layer of this UNet: {', '.join(sorted(left)[:8])}; is it a LoRA "
            f"of {host.base}? To leave keys out all the same, name them with --ignore"
        )
    count = sum(fused[key] is not value for key, value in state.items())
    if not count:
        raise CheckpointError(
            f"{path.name}: expected a LoRA of {host.base}'s UNet, got one that fits none of its layers"
        )
    kind, steps = _made_for(order, host, path.stem)
    return FusedLora(state=fused, kind=kind, steps=steps, fused=count, dropped=ledger.close(ignored), source=path.name)


def unclip_table(lora: FusedLora) -> UnclipLora:
    """Tell how an unCLIP with a LoRA in it is sampled."""
    return UnclipLora(
        file=lora.source,
        kind=lora.kind,
        steps=lora.steps,
        times=times_of(lora.kind, lora.steps),
        sampler=_SAMPLER[lora.kind],
        guidance=1.0,
        fused=lora.fused,
    )


def generator_table(lora: FusedLora) -> GeneratorLora:
    """Tell how a generator of MindEye1 with a LoRA in it is sampled.

    As their publishers say: LCM's own sampler; of Hyper-SD DDIM, but for the file of one step, which is for any number
    up to 8, TCD.
    """
    sampler: StudentSampler = "lcm" if lora.kind == "lcm" else "tcd" if lora.steps == 1 else "ddim"
    return GeneratorLora(file=lora.source, kind=lora.kind, steps=lora.steps, fused=lora.fused, sampler=sampler)


def keeps_guidance(lora: FusedLora) -> bool:
    """Whether it is guided as the network without it: of Hyper-SD those with CFG in the name of the file."""
    return lora.kind == "hyper-sd" and "cfg" in lora.source.lower()


def times_of(kind: LoraKind, steps: int) -> list[int]:
    """Return the network's timesteps that a LoRA of SDXL of a kind is sampled at, falling.

    Lightning, Hyper-SD and DMD2: spaced from the end of the schedule (diffusers' ``trailing``); the start at 800 that
    is told of Hyper-SD is that of its whole UNet of one step. LCM: spread over the 50 levels that it was distilled at
    (diffusers' ``LCMScheduler``).
    """
    return lcm_times(steps) if kind == "lcm" else trailing_times(steps)


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


def _made_for(order: LoraOrder, host: Host, stem: str) -> tuple[LoraKind, int]:
    """Kind and number of steps, as told or as the name of the file tells."""
    lower = stem.lower()
    kind = order.kind or next((kind for kind in host.kinds if _NAMED[kind] in lower), None)
    if kind is None:
        raise CheckpointError(
            f"{stem}: expected a name with {', '.join(_NAMED[one] for one in host.kinds)} in it, to know the sampler: "
            f"tell it with {host.option}-kind ({', '.join(host.kinds)})"
        )
    told = re.search(r"(\d+)[-_]?steps?", lower)
    steps = order.steps or (int(told[1]) if told else _USUAL_STEPS.get(kind))
    if steps is None:
        raise CheckpointError(f"{stem}: expected the number of steps in the name: tell it with {host.option}-steps")
    if not 1 <= steps <= LCM_LEVELS:
        raise CheckpointError(f"steps of the LoRA: expected 1 to {LCM_LEVELS}, got {steps}")
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
