"""ONNX Runtime against torch in float32, part by part: a cut-down MindEye2 pack in the published token layout.

    python bench/parity.py [--json FILE] [--dims small|cut]

Every stage is exported and both run on the same inputs, at several batch sizes; the figure is the largest difference
over the largest value. The stages of the shipped pack were compared when it was exported: see its `pack.toml`. Exit
code 1 if a part differs by more than the pack allows (1e-4).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from _report import print_table, write_json

from engines.compile.parity import agrees
from engines.compile.plan_building import export_pack, verify_parts
from engines.importing.fake import write_fake_mindeye2
from engines.importing.shapes import mindeye2_sizes
from rtdecode.decode.families.tiny.tiny_description import TinyDescription
from rtdecode.packs import open_pack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--dims", choices=("small", "cut"), default="cut")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        weights, exported = Path(scratch) / "weights", Path(scratch) / "exported"
        write_fake_mindeye2(
            weights, dims=arguments.dims, stages=list(mindeye2_sizes(arguments.dims)), precision="float32"
        )
        export_pack(open_pack(str(weights)), exported, precision="float32", report=lambda line: print(line, flush=True))
        pack = open_pack(str(exported))
        found = [one for _, compared in verify_parts(pack, threads=1) for one in compared]
        limit = min(part.tolerance for part in pack.description.parts.values())
        layout = f"{pack.description.tokens.count} x {pack.description.tokens.channels}"
    worst: dict[str, float] = {}
    for one in found:
        worst[one.part] = max(worst.get(one.part, 0.0), one.difference)
    rows = [[part, f"{difference:.1e}"] for part, difference in worst.items()]
    print_table(f"ONNX Runtime against torch, tokens {layout}, at most {limit:g}", ["part", "difference"], rows)
    shipped = open_pack("tiny").described(TinyDescription).report
    if arguments.json:
        write_json(arguments.json, {"tokens": layout, "parts": worst, "shipped_pack": shipped.get("parity")})
    return 0 if agrees(found, limit) else 1


if __name__ == "__main__":
    sys.exit(main())
