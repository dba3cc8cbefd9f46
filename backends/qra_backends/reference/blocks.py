"""How many rows of a weight are worked on together, and what memory that takes."""

from __future__ import annotations

import torch

_ELEMENTS = {"cpu": 1 << 18}  # weights: float32 arrays of 1 MiB, which stay in a CPU's caches
_ARRAYS_ON_CPU = 13  # float32 arrays of a block alive at once, fragments of the heap included
_ELEMENTS_ELSEWHERE = 1 << 24  # few launches, and a GPU's memory takes little notice


def choose_block_rows(columns: int, device: torch.device) -> int:
    """Rows of so many columns to take at once: a multiple of 8, so that their packed codes fill whole bytes."""
    elements = _ELEMENTS.get(device.type, _ELEMENTS_ELSEWHERE)
    return max(8, elements // columns // 8 * 8)


def count_block_bytes(elements: int, device: str, arrays: float) -> int:
    """Bytes of all arrays of a block at the height of fitting and coding a weight of so many elements.

    Args:
        arrays: of float32, alive at once on a GPU, as counted; on a CPU they were measured.
    """
    if device == "cpu":
        arrays = _ARRAYS_ON_CPU
    return int(arrays * 4 * min(elements, _ELEMENTS.get(device, _ELEMENTS_ELSEWHERE)))
