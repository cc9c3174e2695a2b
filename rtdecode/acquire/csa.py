"""The private header that Siemens scanners write beside a mosaic (syngo "CSA2", magic ``SV10``).

Layout after the reverse engineering in nibabel's documentation,
https://nipy.org/nibabel/dicom/siemens_csa.html.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

MAGIC = b"SV10\x04\x03\x02\x01"
MAX_TAGS = 128
MAX_ITEMS = 4096

_TAG = struct.Struct("<64si4siii")
_ITEM = struct.Struct("<iiii")


def parse(raw: bytes, wanted: Collection[str]) -> dict[str, list[str]]:
    """Read some elements of a CSA header.

    Parameters
    ----------
    raw : bytes
        Value of (0029,1010).
    wanted : collection of str
        Names of elements.

    Returns
    -------
    dict of str to list of str
        The non-empty items of each wanted element that is there.

    Raises
    ------
    ValueError
        If `raw` is not a CSA2 header or is damaged.
    """
    if not raw.startswith(MAGIC):
        raise ValueError("expected a CSA header of type SV10")
    try:
        return _elements(raw, wanted)
    except struct.error as error:
        raise ValueError(f"CSA header cut short: {error}") from None


def _elements(raw: bytes, wanted: Collection[str]) -> dict[str, list[str]]:
    (n_tags,) = struct.unpack_from("<I", raw, len(MAGIC))
    if not 0 < n_tags <= MAX_TAGS:
        raise ValueError(f"expected 1 to {MAX_TAGS} elements, got {n_tags}")
    found: dict[str, list[str]] = {}
    at = len(MAGIC) + 8
    for _ in range(n_tags):
        name_field, _, _, _, n_items, _ = _TAG.unpack_from(raw, at)
        at += _TAG.size
        if not 0 <= n_items <= MAX_ITEMS:
            raise ValueError(f"expected 0 to {MAX_ITEMS} items, got {n_items}")
        name = name_field.split(b"\0", 1)[0].decode("latin-1")
        items = []
        for _ in range(n_items):
            _, length, _, _ = _ITEM.unpack_from(raw, at)
            at += _ITEM.size
            if not 0 <= length <= len(raw) - at:
                raise ValueError(f"element {name}: an item of {length} bytes does not fit")
            text = raw[at : at + length].split(b"\0", 1)[0].decode("latin-1").strip()
            if text:
                items.append(text)
            at += (length + 3) // 4 * 4
        if name in wanted:
            found[name] = items
    return found
