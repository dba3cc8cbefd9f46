"""Randomness that is a function of a key alone, in any process."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def generator(*key: Any) -> np.random.Generator:
    """A generator that is a function of its key, on any machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
