"""What a worker may use of the machine: a GPU, assigned by name, and threads, limited by environment variables."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from qra_search.errors import BadInput

DEVICE = "QRA_DEVICE"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

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


def check_enough_gpus(gpus: int, workers: int, where: str) -> None:
    """Raises BadInput if not every worker can have a GPU of its own; `where` says what has the GPUs."""
    if gpus < workers:
        raise BadInput(
            f"{where} has {gpus} GPUs, and each of {workers} workers needs one: use fewer, or --device cpu"
        )


def assign_devices(device: str, workers: int) -> list[str]:
    """The device of each worker process: a GPU if there are any and the run's device allows it, else `cpu`.

    Raises BadInput if there are too few.
    """
    if not (device == "auto" or uses_gpus(device)):
        return ["cpu"] * workers
    visible, named = list_visible_gpus(), parse_gpus(device)
    if missing := [name for name in named if name not in visible]:
        raise BadInput(f"device {missing[0]!r}: torch sees {len(visible)} GPUs here, numbered from 0")
    if device == "auto" and not visible:
        return ["cpu"] * workers
    gpus = named or visible
    check_enough_gpus(len(gpus), workers, f"device {device!r}" if named else "this machine")
    return gpus[:workers]


def make_environment(device: str, workers: int) -> dict[str, str]:
    """Variables that narrow a worker to its device, to be set before it starts.

    A worker sees its own GPU only, which is its evaluator's `cuda`.

    Raises:
        ValueError: another form, or a GPU that this process was not given.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = limit_threads(max(1, cores // workers))
    if device == "cpu":
        return {DEVICE: "cpu", "CUDA_VISIBLE_DEVICES": "", **threads}
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index.isdecimal():
        raise ValueError(f"unknown device {device!r}: use cpu, or cuda:0")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:  # this process may have been given some of the machine's GPUs only
        known = [name.strip() for name in given.split(",") if name.strip()]
        if int(index) >= len(known):
            raise ValueError(
                f"device {device!r}: this process was given {len(known)} GPUs (CUDA_VISIBLE_DEVICES={given})"
            )
        index = known[int(index)]
    return {DEVICE: "cuda", "CUDA_VISIBLE_DEVICES": index, **threads}


def limit_threads(count: int) -> dict[str, str]:
    """Variables that hold linear algebra to so many threads, in processes that are started with them."""
    return dict.fromkeys(_THREADS, str(count))


@contextmanager
def export_variables(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started in here; one caller at a time."""
    with _environment_lock:
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                os.environ.pop(name)
            os.environ.update({name: before[name] for name in variables if name in before})
