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
    """The GPUs that torch can use in this process, by their names for CUDA_VISIBLE_DEVICES: `cuda:0`."""
    if "+cpu" in importlib.metadata.version("torch"):
        return []  # without importing torch, which a study with workers does not need
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [f"cuda:{name}" for name in (given.split(",") if given else range(count))][:count]


def check_enough_gpus(gpus: int, workers: int) -> None:
    if gpus < workers:
        raise BadInput(
            f"each of {workers} workers needs a GPU, and there are {gpus}: use fewer workers, or --device cpu"
        )


def assign_devices(device: str, workers: int) -> list[str]:
    """The device of each worker process: a GPU if there are any and the run's device allows it, else `cpu`.

    Raises BadInput if there are too few.
    """
    gpus = [] if device == "cpu" else list_visible_gpus()
    if device == "cpu" or (device == "auto" and not gpus):
        return ["cpu"] * workers
    check_enough_gpus(len(gpus), workers)
    return gpus[:workers]


def make_environment(device: str, workers: int) -> dict[str, str]:
    """Variables that narrow a worker to its device, `cpu` or such as `cuda:0`, to be set before it starts.

    A worker sees its own GPU only, which is its evaluator's `cuda`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kind, _, index = device.partition(":")
    return {DEVICE: kind, "CUDA_VISIBLE_DEVICES": index, **limit_threads(max(1, cores // workers))}


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
