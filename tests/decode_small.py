"""A participant small enough for tests: eight category patterns in 60 voxels, calibrated with the tiny pack."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.calibrator import Calibrator, write_bundle
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.families.tiny.stimulus_tokens import embed_candidates
from rtdecode.decode.families.tiny.tiny_stages import TinyStages, load_stages
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.score.candidates import Candidates
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack, open_pack
from rtdecode.records import BetaUpdate, Stamp, TrialEvent
from rtdecode.settings import DecodeSettings

N_VOXELS = 60


@functools.cache
def tiny_pack() -> EnginePack:
    import engines.tiny

    return open_pack(str(engines.tiny.pack_path()))


@functools.cache
def tiny_stages() -> TinyStages:
    return load_stages(tiny_pack())


@functools.cache
def tiny_categories() -> Candidates:
    return embed_candidates(tiny_stages(), None)


def tiny_decoder(stimuli: Path | None = None) -> Decoder:
    return load_decoder(tiny_pack(), DecodeSettings(stimuli=stimuli))


def category_beta(category: int, noise: float, rng: np.random.Generator) -> NDArray[np.float32]:
    patterns = np.random.default_rng(77).standard_normal((8, N_VOXELS))
    return (patterns[category] + noise * rng.standard_normal(N_VOXELS)).astype(np.float32)


def category_calibrator(*, noise: float = 1.0, seed: int = 0, runs: int = 4, shuffled: bool = False) -> Calibrator:
    stages = tiny_stages()
    calibrator = Calibrator(tiny_categories(), leave_out="run", seed=seed)
    rng = np.random.default_rng(seed)
    for run in range(1, runs + 1):
        told = rng.permutation(8) if shuffled else np.arange(8)
        for category in range(8):
            beta = category_beta(category, noise, rng)
            calibrator.add(beta, trial=f"r{run}c{category}", stimulus=stages.categories[told[category]], run=run)
    return calibrator


def write_category_bundle(folder: Path, *, pack: EnginePack | None = None, noise: float = 1.0) -> str:
    calibrator = category_calibrator(noise=noise)
    calibrator.status()
    return write_bundle(
        folder,
        calibrator.fit(),
        pack=pack or tiny_pack(),
        participant="01",
        session="01",
        curve=calibrator.curve,
    )


def category_update(category: int, *, noise: float = 1.0, seed: int = 5, revision: int = 0) -> BetaUpdate:
    names = tiny_stages().categories
    return BetaUpdate(
        stamp=Stamp(session="test-01", run=5, volume=12, received_s=0.0, received_mono_s=0.0),
        event=TrialEvent(run=5, trial="r5t1", onset_s=0.0, duration_s=2.0, condition=names[category]),
        revision=revision,
        final=True,
        delay_s=8.0,
        beta=category_beta(category, noise, np.random.default_rng(seed)),
    )


class FakeEngine:
    """Adds its two inputs, which have three columns."""

    name = "fake/sum"
    inputs = ("a", "b")
    outputs = ("total",)

    def run(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if set(values) != set(self.inputs):
            raise EngineError(f"{self.name}: expected inputs {sorted(self.inputs)}, got {sorted(values)}")
        for name, value in values.items():
            if value.dtype != np.float32 or value.ndim != 2 or value.shape[1] != 3:
                raise EngineError(f"{self.name}: {name}: expected float32 (batch, 3), got {value.dtype} {value.shape}")
        return {"total": values["a"] + values["b"]}
