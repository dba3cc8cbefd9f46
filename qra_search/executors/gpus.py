"""How GPUs are dealt out to workers: how many each gets, and one clear line if there are too few."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence

from qra_search.errors import BadInput


def visible_gpus() -> list[str]:
    """The GPUs that torch can use in this process, as device names."""
    if "+cpu" in importlib.metadata.version("torch"):
        return []  # a study with workers needs no torch itself: it is not imported to hear that there are none
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def named_gpus(device: str) -> list[str]:
    """The GPUs that a device names: `cuda:0,cuda:1` as both; empty for `auto`, `cpu` and `cuda`."""
    return [part for part in device.split(",") if part.startswith("cuda:")]


def uses_gpus(device: str) -> bool:
    """Whether a device is a GPU or several, whichever there are."""
    return device.partition(":")[0] == "cuda"


def check_share(gpus: float | None, device: str) -> None:
    """Raises BadInput if no worker can have so many GPUs, or the device says otherwise."""
    if gpus is None:
        return
    if not (math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
        raise BadInput(f"--gpus-per-worker is {gpus:g}: 0, a share of one GPU such as 0.5, or a whole number is needed")
    if gpus and device == "cpu":
        raise BadInput(f"--gpus-per-worker is {gpus:g} and the device is 'cpu': leave one of them out")
    if not gpus and uses_gpus(device):
        raise BadInput(f"--gpus-per-worker is 0 and the device is {device!r}: leave one of them out")


def check_room(nodes: Sequence[int], workers: int, gpus: float, where: str) -> None:
    """Check that workers of so many GPUs each find room.

    Args:
        nodes: GPUs of every machine; a worker's are all of one machine.
        where: what has the GPUs, for the message.

    Raises:
        BadInput: there are too few.
    """
    share = "a GPU" if gpus == 1 else f"{gpus:g} GPUs" if gpus > 1 else f"{gpus:g} of a GPU"
    room = sum(_places(count, gpus) for count in nodes)
    if room >= workers:
        return
    there = f"{where} has {sum(nodes) or 'no'} GPU{'' if sum(nodes) == 1 else 's'}"
    if not sum(nodes):
        mend = "use --device cpu"
    elif not room:
        mend = f"at most --gpus-per-worker {max(nodes)} can be placed"
    else:
        mend = f"use --workers {room}, or fewer --gpus-per-worker (0.5: two workers share one)"
    raise BadInput(f"{workers} worker{'' if workers == 1 else 's'} with {share} each: {there}: {mend}")


def leases(gpus: Sequence[str], share: float) -> list[str]:
    """GPUs as devices of workers: `cuda:0,cuda:1` for one with two; one GPU for several workers comes up in turn."""
    if share < 1:
        return list(gpus) * _places(1, share)
    size = int(share)
    return [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]


def _places(count: int, gpus: float) -> int:
    return count // int(gpus) if gpus >= 1 else count * int(1 / gpus + 1e-9)
