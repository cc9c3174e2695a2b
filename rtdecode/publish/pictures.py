"""Pictures as bytes: as a message carries them, and as a session keeps them."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Encoding = Literal["jpeg", "webp", "png"]
KEPT: Encoding = "webp"
"""As the session folder keeps pictures; lossless."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True, "method": 2},
    "png": {"compress_level": 1},
}
_BEGINNINGS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}


def encoded(picture: NDArray[np.uint8], encoding: Encoding) -> bytes:
    """Encode a picture (h, w, 3), sRGB; WebP and PNG lose nothing."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, encoding, **_OPTIONS[encoding])
    return buffer.getvalue()


def media_type(image: bytes) -> str:
    """Name what an encoded picture is, as HTTP does."""
    kinds = [kind for beginning, kind in _BEGINNINGS.items() if image.startswith(beginning)]
    return f"image/{kinds[0]}" if kinds else "application/octet-stream"
