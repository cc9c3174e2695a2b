"""The ``pack.toml`` of tiny imagery packs."""

from __future__ import annotations

from rtdecode.packs.description import PackDescription


class TinyImageryDescription(PackDescription, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``; it has no stages of its own.

    Attributes
    ----------
    generator : str
        Name of an installed tiny pack, or its folder, whose networks draw.
    generator_identity : str
        Of that pack.
    """

    family = "tiny-imagery"

    generator: str
    generator_identity: str
