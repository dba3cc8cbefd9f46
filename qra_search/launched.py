"""Where this process stands among those that `torchrun` or `accelerate launch` started together."""

from __future__ import annotations

import os


def standing() -> tuple[int, int]:
    """Rank, counted from 0, and number of processes; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def follows() -> bool:
    """Whether another process leads: that one alone prints and writes."""
    return standing()[0] > 0
