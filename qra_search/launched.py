"""Where this process stands among those that `torchrun` or `accelerate launch` started together."""

from __future__ import annotations

import os


def get_rank_and_size() -> tuple[int, int]:
    """Rank, counted from 0, and number of processes; (0, 1) without a launcher, which sets both."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal() and int(size) > 1):
        return 0, 1
    return int(rank), int(size)


def is_follower() -> bool:
    """Whether this is not the first process, which alone prints and writes."""
    return get_rank_and_size()[0] > 0
