"""What a worker may use of the machine: GPUs or cores, leased by a name and narrowed by environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

DEVICE, CORES = "QRA_DEVICE", "QRA_CORES"
FORMS = "cpu, cores:0-3, cuda:0, or cuda:0,cuda:1 for an evaluation that spans two"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_environment_lock = Lock()


def own_cores() -> list[int]:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_sets(workers: int) -> list[str]:
    """The cores of this process dealt out to workers: `cores:0,1`. More workers than cores share them in turn."""
    cores = own_cores()
    if workers >= len(cores):
        return [f"cores:{cores[i % len(cores)]}" for i in range(workers)]
    bounds = [round(i * len(cores) / workers) for i in range(workers + 1)]
    return ["cores:" + ",".join(map(str, cores[a:b])) for a, b in zip(bounds, bounds[1:], strict=False)]


def environment(device: str, workers: int) -> dict[str, str]:
    """Variables that narrow a worker to its device, to be set before it starts.

    Of the GPUs a worker sees its own only, so that its evaluator's `cuda` (or `device_map="auto"`) is these.

    Args:
        device: see `FORMS`.
        workers: how many share the machine's cores.

    Raises:
        ValueError: another form, or a GPU that this process was not given.
    """
    share = threads(max(1, len(own_cores()) // workers))
    kind, _, rest = device.partition(":")
    if device == "cpu":
        return {DEVICE: "cpu", "CUDA_VISIBLE_DEVICES": "", **share}
    if kind == "cores":
        cores = _numbers(device, rest)
        values = {DEVICE: "cpu", CORES: ",".join(map(str, cores)), "CUDA_VISIBLE_DEVICES": ""}
        return {**values, **threads(len(cores))}
    if kind == "cuda":
        indices = [n for part in device.split(",") for n in _numbers(device, part.removeprefix("cuda:"))]
        return {DEVICE: "cuda", "CUDA_VISIBLE_DEVICES": _visible(device, indices), **share}
    raise ValueError(f"device {device!r} is of no known form: use {FORMS}")


def threads(count: int) -> dict[str, str]:
    """Variables that hold linear algebra to so many threads, in processes that are started with them."""
    return dict.fromkeys(_THREADS, str(count))


@contextmanager
def exported(variables: dict[str, str]) -> Iterator[None]:
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


def settle_in() -> None:
    """In a worker: keep to the cores of the lease."""
    cores = os.environ.get(CORES)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def _visible(device: str, indices: list[int]) -> str:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return ",".join(map(str, indices))
    names = [name.strip() for name in given.split(",") if name.strip()]
    if any(i >= len(names) for i in indices):
        raise ValueError(f"device {device!r}: this process was given {len(names)} GPUs (CUDA_VISIBLE_DEVICES={given})")
    return ",".join(names[i] for i in indices)


def _numbers(device: str, text: str) -> list[int]:
    """`0,2-3` as [0, 2, 3]."""
    numbers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ValueError(f"device {device!r} is of no known form: use {FORMS}")
        numbers += range(int(low), int(high or low) + 1)
    return numbers
