"""Work on a CPU in several threads of few torch threads each.

To quantize a linear is thousands of small operations. Torch's own threads gain next to nothing on those, and where
cores are busy they wait for each other: on two busy cores they took 5 to 20 times the processor time of one thread.
Linears side by side, a thread each, gain all that the cores have.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch
from qra_backends.base import Backend

Item = TypeVar("Item")


def count_workers(backend: Backend, items: int, device: torch.device) -> int:
    """Threads that quantize so many items: as many as torch has; one if a GPU does it or the backend says so."""
    allowed = backend.side_by_side and device.type == "cpu"
    return max(1, min(items, torch.get_num_threads())) if allowed else 1


def run_in_threads(work: Callable[[Item], None], items: Sequence[Item], workers: int) -> Generator[Item]:
    """Do the work on every item, in `workers` threads that share torch's threads; gives each item whose work is done.

    Items start in the order given. After a failure, which is raised, no further item starts.
    """
    if workers == 1:
        for item in items:
            work(item)
            yield item
        return
    whole = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, whole // workers),))
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(whole)  # what a thread sets holds for all that ask afterwards
