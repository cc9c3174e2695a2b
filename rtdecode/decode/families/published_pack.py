"""The ``pack.toml`` of packs of published networks, which MindEye1 and MindEye2 share."""

from __future__ import annotations

from msgspec import field

from rtdecode.packs.description import PackDescription
from rtdecode.typed import Table


class DroppedKeys(Table, frozen=True, kw_only=True):
    """Keys of a published file that are in no stage.

    Attributes
    ----------
    file, reason : str
        Where they are, and why they were left out.
    keys : list of str
        Their names.
    """

    file: str
    reason: str
    keys: list[str]


class PublishedDescription(PackDescription, frozen=True, kw_only=True, omit_defaults=True):
    """Content of ``pack.toml``.

    Attributes
    ----------
    participants : list of int
        Numbers in the published files of the participants whose ridge layers or networks there are.
    dropped : list of DroppedKeys
        Keys of the published files that were left out.
    """

    participants: list[int] = field(default_factory=list)
    dropped: list[DroppedKeys] = field(default_factory=list)
