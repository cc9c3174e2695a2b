"""A family in another package: the tiny one, which also predicts of every volume."""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from rtdecode.decode.families.tiny import TinyFamily
from rtdecode.decode.families.tiny.tiny_pipeline import TinyPipeline
from rtdecode.decode.pipeline import VolumeContext
from rtdecode.decoded import Prediction
from rtdecode.records import RegisteredVolume

WINDOW = 4


def predicted(volumes: list[RegisteredVolume]) -> dict[str, float]:
    """What `ExamplePipeline` says of the last of some volumes."""
    series = np.stack([volume.masked for volume in volumes]).astype(np.float64)
    return {
        "seen": float(len(series)),
        "change": float(np.abs(series - series.mean(0)).mean()),
        "volume": float(volumes[-1].stamp.volume),
        "parcel": float(np.nansum([*volumes[-1].parcels.get("atlas", {}).values()])),
    }


class ExamplePipeline(TinyPipeline):
    """Looks at four volumes."""

    window = WINDOW

    def predict(self, volume: RegisteredVolume, context: VolumeContext) -> Prediction:
        return Prediction(values=predicted([*context.earlier, volume]))


class ExampleFamily(TinyFamily):
    """The tiny family with another pipeline."""

    def pipeline(self, *arguments: Any, **options: Any) -> TinyPipeline:
        made = super().pipeline(*arguments, **options)
        made.__class__ = ExamplePipeline
        return made


FAMILY = ExampleFamily()


def install(folder: Path, pack: Path) -> Path:
    """Write the entry point of the family, and a copy of a tiny pack that is of its kind; return the folder of that."""
    info = folder / "example_family-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-family\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rtdecode.families]\nexample = tests.system.example_family:FAMILY\n")
    made = folder / "example-pack"
    shutil.copytree(pack, made)
    described = made / "pack.toml"
    described.write_text(tomli_w.dumps(tomllib.loads(described.read_text()) | {"kind": "example"}))
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["files"]["pack.toml"] = hashlib.sha256(described.read_bytes()).hexdigest()
    (made / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return made
