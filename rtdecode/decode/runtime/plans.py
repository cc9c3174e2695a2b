"""Compiled plans of a pack: what each was compiled for, and the refusal of any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rtdecode.decode.runtime.engine import Engine
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.description import PartTable

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, usual and largest shape of each input."""
SCHEMA = "rtdecode.plan/1"
_SHORT = 16
_LARGEST = {"batch": 4, "voxels": 1 << 15, "tokens": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Where plans are compiled and run.

    Attributes
    ----------
    tensorrt, gpu, compute_capability, driver : str
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """All that a plan depends on.

    Attributes
    ----------
    network : str
        SHA-256 of the ONNX file and its external data.
    hardware : Hardware
        Versions of TensorRT and driver, name and compute capability of the GPU.
    precision : str
        Of the network, as ``pack.toml`` tells it of the part.
    profile : dict
        See `Profile`.
    flags : tuple of str
        Options of the compiler.
    """

    network: str
    hardware: Hardware
    precision: str
    profile: Profile
    flags: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """All values by name, as JSON has them."""
        plain = {**asdict(self.hardware), **{k: v for k, v in asdict(self).items() if k != "hardware"}}
        return dict(json.loads(json.dumps(plain)))

    @property
    def digest(self) -> str:
        """Name of the folder of its plans."""
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()[:_SHORT]


class PlanEngine(Engine, Protocol):
    """An engine that can leave its arrays on the GPU."""

    def compute(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Do as `run` does with torch tensors."""
        ...


class PlanRuntime(Protocol):
    """The seam to the library that runs plans."""

    def hardware(self) -> Hardware:
        """Describe library, GPU and driver. Raises EngineError where there is none."""
        ...

    def load(self, plan: bytes, name: str) -> PlanEngine:
        """Make an engine of a plan. Raises EngineError if the library refuses it."""
        ...


def network_digest(onnx: Path) -> str:
    """SHA-256 of an ONNX file and of its external data, ``<file>.data``, if there is any."""
    total = hashlib.sha256()
    for path in (onnx, onnx.with_name(f"{onnx.name}.data")):
        if path.exists():
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def exported(pack: EnginePack) -> Mapping[str, PartTable]:
    """Return the exported parts by name.

    Raises
    ------
    EngineError
        There are none.
    """
    parts = pack.description.parts
    if not parts:
        raise EngineError(f"pack {pack.name}: expected exported parts, got none: rtdecode engines export {pack.folder}")
    return parts


def without_kernels(pack: EnginePack) -> list[str]:
    """Names of the exported parts that ONNX Runtime's CPU backend has no kernels for: those in bfloat16."""
    return [name for name, part in pack.description.parts.items() if part.precision == "bfloat16"]


def runnable(pack: EnginePack) -> Mapping[str, PartTable]:
    """Return the exported parts by name, all of which ONNX Runtime runs.

    Raises
    ------
    EngineError
        There are none, or some are in bfloat16.
    """
    parts = exported(pack)
    if lacking := without_kernels(pack):
        raise EngineError(
            f"pack {pack.name}: expected parts that ONNX Runtime runs on a CPU, got {', '.join(lacking)} in bfloat16, "
            "which it has no kernels for: rtdecode engines export --precision float16 (or mixed), engines build on the "
            'GPU that runs it, or decode.backend = "torch"'
        )
    return parts


def sizes_of(pack: EnginePack) -> dict[str, int]:
    """Sizes of inputs that vary between packs, but not within one."""
    return {"tokens": pack.description.tokens.count}


def profile_of(inputs: Mapping[str, list[int | str]], sizes: Mapping[str, int]) -> Profile:
    """Return smallest, usual and largest shape of inputs whose sizes vary."""

    def shape(of: list[int | str], known: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else known[size] for size in of)

    smallest = {**dict.fromkeys(_LARGEST, 1), **sizes}
    usual = {"batch": 1, "voxels": 15_000, "tokens": 256, **sizes}
    largest = {**_LARGEST, **sizes}
    return {
        name: (shape(of, smallest), shape(of, usual), shape(of, largest))
        for name, of in inputs.items()
        if any(isinstance(size, str) for size in of)
    }


def plan_keys(pack: EnginePack, hardware: Hardware, flags: tuple[str, ...] = ()) -> dict[str, PlanKey]:
    """Return what the plan of each exported part must have been compiled for."""
    return {
        name: PlanKey(
            network=network_digest(pack.folder / part.file),
            hardware=hardware,
            precision=part.precision,
            profile=profile_of(part.inputs, sizes_of(pack)),
            flags=flags,
        )
        for name, part in exported(pack).items()
    }


def sidecars(pack: EnginePack, stage: str) -> dict[Path, dict[str, Any]]:
    """Read what the plans of a stage say of themselves, by the plan's path."""
    found = {}
    for path in sorted(pack.folder.glob(f"plans/*/{stage}.json")):
        try:
            found[path.with_suffix(".plan")] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, ValueError):
            found[path.with_suffix(".plan")] = {}
    return found


def load_plan(pack: EnginePack, stage: str, key: PlanKey, runtime: PlanRuntime) -> PlanEngine:
    """Load the plan of a stage that was compiled for `key`.

    Raises
    ------
    EngineError
        There is none, it was compiled for something else (both are told), it was altered, or the library refuses it.
    """
    name = f"{pack.name}/{stage}"
    path = pack.folder / "plans" / key.digest / f"{stage}.plan"
    known = sidecars(pack, stage)
    if path not in known:
        others = "; ".join(f"{other.parent.name}: {_differences(said, key)}" for other, said in known.items())
        raise EngineError(
            f"{name}: expected a plan for {_told(key.fields())}, found {others or 'none'}; "
            f"compile it: rtdecode engines build {pack.folder}"
        )
    said = known[path]
    if said.get("schema") != SCHEMA or said.get("key") != key.fields():
        raise EngineError(
            f"{path}: expected the key {_told(key.fields())}, got {_told(said.get('key', {}))}; build anew"
        )
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != said["sha256"]:
        raise EngineError(f"{path}: content differs from its sidecar; build anew")
    return runtime.load(plan, name)


def _told(key: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in key.items() if name not in ("profile", "flags"))


def _differences(said: Mapping[str, Any], key: PlanKey) -> str:
    other = said.get("key", {})
    return ", ".join(
        f"{name} {other.get(name)} instead of {value}"
        for name, value in key.fields().items()
        if other.get(name) != value
    )
