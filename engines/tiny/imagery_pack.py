"""The tiny imagery pack: a description that names the tiny pack and what of it is predicted."""

from __future__ import annotations

from pathlib import Path

from engines.tiny import pack_path
from rtdecode.decode.families.tiny.tiny_description import TinyDescription
from rtdecode.decode.families.tiny_imagery.tiny_imagery_description import TinyImageryDescription
from rtdecode.packs import open_pack
from rtdecode.packs.description import PACK_SCHEMA, TokenTable, write_description
from rtdecode.packs.sealed import seal

TINY = "tiny"


def seal_imagery_pack(out: Path) -> str:
    """Seal the pack for the tiny pack that is shipped; returns its identity."""
    tiny = open_pack(str(pack_path()))
    said = tiny.described(TinyDescription)
    semantic = said.tokens.groups["semantic"]
    width = semantic[1] - semantic[0]

    def write(folder: Path) -> None:
        description = TinyImageryDescription(
            schema=PACK_SCHEMA,
            name="tiny-imagery",
            kind="tiny-imagery",
            licence=said.licence,
            description="what kind of thing it is and how it differs from its kind, from linear heads; drawn by the "
            "tiny pack",
            tokens=TokenTable(count=1, channels=2 * width, groups={"kind": (0, width), "own": (width, 2 * width)}),
            stages={},
            generator=TINY,
            generator_identity=tiny.identity,
        )
        write_description(folder, description)

    return seal(out, PACK_SCHEMA, write)
