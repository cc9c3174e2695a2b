"""One independent random stream per purpose, all from one seed."""

from __future__ import annotations

import uuid
import zlib

import numpy as np


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return the stream of random numbers for a purpose.

    Parameters
    ----------
    seed : int
        Seed of the whole visit.
    purpose : str
        What the numbers are for; each purpose has its own stream.
    *indices : int
        Run, participant, ... within the purpose.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *indices)))


def uid(*parts: object) -> str:
    """Return a DICOM UID that is the same for the same parts (under the 2.25 root of UUIDs)."""
    name = "/".join(str(part) for part in ("rtdecode.simulate", *parts))
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, name).int}"
