"""Work on a CPU in several threads of few torch threads each.

To quantize a linear is thousands of small operations. Torch's own threads gain next to nothing on those, and where
cores are busy they wait for each other: on two busy cores they took 5 to 20 times the processor time of one thread.
Linears side by side, a thread each, gain all that the cores have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch
from qra_backends.base import Backend
from torch import nn

from qra_eval.quantized.calibration import LayerMoments

Item = TypeVar("Item")


def workers(backend: Backend, items: int, device: torch.device) -> int:
    """Threads that quantize so many items: as many as torch has; one if a GPU does it or the backend says so."""
    allowed = backend.side_by_side and device.type == "cpu"
    return max(1, min(items, torch.get_num_threads())) if allowed else 1


def sharing(names: Sequence[str], moments: LayerMoments | None, linears: Mapping[str, nn.Linear]) -> list[list[str]]:
    """Linears that share a Hessian, which is factorized once for them; those that take longest come first."""
    together: dict[str, list[str]] = {}
    for name in names:
        together.setdefault(name if moments is None else moments.owner(name), []).append(name)

    def work(names: list[str]) -> int:
        return sum(linears[name].out_features * linears[name].in_features ** 2 for name in names)

    return sorted(together.values(), key=work, reverse=True)


def side_by_side(
    work: Callable[[Item], None], items: Sequence[Item], workers: int, done: Callable[[Item], None]
) -> None:
    """Do the work on every item, in `workers` threads that share torch's threads.

    Items start in the order given. After a failure no further item starts.

    Args:
        done: called in the caller's thread with each item whose work is done.

    Raises:
        Whatever the work or `done` raises.
    """
    if workers == 1:
        for item in items:
            work(item)
            done(item)
        return
    whole = torch.get_num_threads()
    share = max(1, whole // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            future.result()
            done(futures[future])
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(whole)  # what a thread sets holds for all that ask afterwards
