"""The embedder of a pack of published networks, run by torch: on a GPU where there is one."""

from __future__ import annotations

import numpy as np

from rtdecode.decode.families.family import Embedder, Float32
from rtdecode.decode.runtime.backends import import_torch_runtime, torch_place
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack


def network_embedder(pack: EnginePack, *, threads: int, output: int | None = None) -> Embedder:
    """Load it; see `Family.embedder`. `output` is the place of the tokens, or of one, if it gives more."""
    if "embedder" not in pack.description.stages:
        raise EngineError(f"pack {pack.name}: expected a stage embedder, got none; import it with the unCLIP")
    with import_torch_runtime(pack, threads):
        import torch

        from rtdecode.decode.networks.build import load
        from rtdecode.decode.runtime.torch_runner import DTYPES
    device, precision = torch_place()
    network = load(pack, "embedder", device=device, dtype=DTYPES[precision])

    def run(pictures: Float32) -> Float32:
        with torch.no_grad():
            found = network(torch.from_numpy(pictures).to(device))
        found = found if output is None else found[output]
        found = found[:, None] if found.ndim == 2 else found
        return np.asarray(found.float().cpu().numpy())

    return Embedder(run=run, picture_px=None)
