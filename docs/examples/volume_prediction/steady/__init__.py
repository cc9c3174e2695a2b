"""The tiny family, which also says of every volume how unlike the last seven it is: what a loop may wait for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec.structs import replace

from engines.sealed_copies import seal_copy
from rtdecode.decode.families.tiny import TinyFamily
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.families.tiny.tiny_stages import load_stages
from rtdecode.decode.pipeline import VolumeContext
from rtdecode.decode.runtime.backends import Backend
from rtdecode.decoded import Prediction
from rtdecode.packs import EnginePack, open_pack
from rtdecode.records import RegisteredVolume
from rtdecode.settings import DecodeSettings


class SteadyPipeline(TinyPipeline):
    """A `Pipeline` that is a `VolumePredictor` as well."""

    window = 8

    def predict(self, volume: RegisteredVolume, context: VolumeContext) -> Prediction:
        """Predict of a volume.

        ``change``: its root mean square distance from the mean of the volumes before, percent of that mean; nan for
        the first. ``<image>/<label>``: the signal of each parcel, percent, as the estimate gives it.
        """
        values = {
            f"{image}/{label}": signal for image, parcels in volume.parcels.items() for label, signal in parcels.items()
        }
        return Prediction(values={"change": _change(volume, context), **values})


def _change(volume: RegisteredVolume, context: VolumeContext) -> float:
    if not context.earlier:
        return float("nan")
    before = np.mean([earlier.masked for earlier in context.earlier], axis=0, dtype=np.float64)
    return float(np.sqrt(np.mean(np.square(100 * (volume.masked / before - 1)))))


class SteadyFamily(TinyFamily):
    """The tiny family with the pipeline above."""

    def pipeline(self, pack: EnginePack, settings: DecodeSettings, backend: Backend, *, seed: int) -> SteadyPipeline:
        """Load the stages."""
        stages = load_stages(pack, threads=settings.threads)
        return SteadyPipeline(stages, seed=seed, prior_steps=settings.prior_steps, unclip_steps=settings.unclip_steps)


FAMILY = SteadyFamily()


def write_pack(folder: Path) -> str:
    """Seal a copy of the installed tiny pack that is of this family's kind."""
    pack = open_pack("tiny")
    return seal_copy(pack, folder, lambda _: replace(pack.description, kind="steady"))
