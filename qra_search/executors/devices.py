"""What a worker may use of the machine: GPUs, assigned by name, and threads, limited by environment variables."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from qra_search.errors import BadInput

DEVICE = "QRA_DEVICE"
SHARING = "QRA_SHARING"
"""Number of workers that share a worker's GPU."""
FORMS = "cpu, cuda:0, or cuda:0,cuda:1 for an evaluation that spans two"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GPU = re.compile(r"cuda:([0-9]+)")

_environment_lock = Lock()


def list_visible_gpus() -> list[str]:
    """The GPUs that torch can use in this process, as device names."""
    if "+cpu" in importlib.metadata.version("torch"):
        return []  # without importing torch, which a study with workers does not need
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def parse_gpus(device: str) -> list[str]:
    """The GPUs that a device names: `cuda:0,cuda:1` as both; empty for `auto`, `cpu` and `cuda`."""
    return [part for part in device.split(",") if part.startswith("cuda:")]


def uses_gpus(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def check_share(gpus: float | None, device: str) -> None:
    """Raises BadInput for an impossible number of GPUs of a worker, or one that contradicts the device."""
    if gpus is None:
        return
    if not (math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
        raise BadInput(
            f"--gpus-per-worker must be 0, a share of one GPU such as 0.5, or a whole number, got {gpus:g}"
        )
    if (device == "cpu") if gpus else uses_gpus(device):
        raise BadInput(f"--gpus-per-worker is {gpus:g} and the device is {device!r}: leave one of them out")


def check_enough_gpus(nodes: Sequence[int], workers: int, gpus: float, where: str) -> None:
    """Raises BadInput if there are too few GPUs for all workers.

    Args:
        nodes: GPUs of every machine; a worker's are all of one machine.
        where: what has the GPUs, for the message.
    """
    room = sum(count // int(gpus) if gpus >= 1 else count * int(1 / gpus + 1e-9) for count in nodes)
    if room < workers:
        raise BadInput(
            f"{where} has {sum(nodes)} GPU{'s' * (sum(nodes) != 1)}, enough for {room} of {workers} workers with "
            f"{gpus:g} each: ask for fewer workers or GPUs (--gpus-per-worker 0.5: two workers share one), or use "
            f"--device cpu"
        )


def assign_devices(device: str, workers: int, share: float | None) -> list[str]:
    """The device of each worker process: GPUs if there are any and the run's device allows it, else `cpu`.

    Raises BadInput if there are too few.

    Args:
        device: of the run.
        share: GPUs of each worker, below 1 if several share one; None: as many as the device names, or one.
    """
    if share == 0 or not (device == "auto" or uses_gpus(device)):
        return ["cpu"] * workers
    visible = list_visible_gpus()
    named = parse_gpus(device)
    if missing := [name for name in named if name not in visible]:
        raise BadInput(
            f"device {missing[0]!r}: torch sees {len(visible) or 'no'} GPUs here: name others, or use cpu"
        )
    if share is None and device == "auto" and not visible:
        return ["cpu"] * workers
    share = share or max(1, len(named))
    gpus = named or visible
    check_enough_gpus([len(gpus)], workers, share, f"device {device!r}" if named else "this machine")
    size = max(1, int(share))
    bundles = [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]
    return [bundles[worker % len(bundles)] for worker in range(workers)]


def make_environment(device: str, workers: int, sharing: int = 1) -> dict[str, str]:
    """Variables that narrow a worker to its device, to be set before it starts.

    Of the GPUs a worker sees its own only, so that its evaluator's `cuda` (or `device_map="auto"`) is these.

    Args:
        device: see `FORMS`.
        workers: how many share the machine's cores.
        sharing: how many of them share the device.

    Raises:
        ValueError: another form, or a GPU that this process was not given.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = limit_threads(max(1, cores // workers))
    if device == "cpu":
        return {DEVICE: "cpu", "CUDA_VISIBLE_DEVICES": "", **share}
    gpus = [_GPU.fullmatch(part) for part in device.split(",")]
    indices = [int(gpu.group(1)) for gpu in gpus if gpu is not None]
    if len(indices) < len(gpus):
        raise ValueError(f"unknown device {device!r}: use {FORMS}")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, indices))
    if given is not None:  # this process may have been given some of the machine's GPUs only
        known = [name.strip() for name in given.split(",") if name.strip()]
        if max(indices) >= len(known):
            raise ValueError(
                f"device {device!r} does not exist: this process was given {len(known)} GPUs "
                f"(CUDA_VISIBLE_DEVICES={given}), which are numbered from 0"
            )
        names = [known[i] for i in indices]
    shown = {"CUDA_VISIBLE_DEVICES": ",".join(names)}
    return {DEVICE: name_device(len(indices)), SHARING: str(sharing), **shown, **share}


def name_device(count: float) -> str:
    """The device of a worker that sees so many GPUs, or a share of one, and no others: `cuda`, or `cuda:0,cuda:1`."""
    return "cuda" if count <= 1 else ",".join(f"cuda:{i}" for i in range(int(count)))


def limit_threads(count: int) -> dict[str, str]:
    """Variables that hold linear algebra to so many threads, in processes that are started with them."""
    return dict.fromkeys(_THREADS, str(count))


@contextmanager
def export_variables(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started in here; one caller at a time."""
    with _environment_lock:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
