"""Workers: processes of this machine, each with its own GPU or share of the threads, and actors of a Ray cluster."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

from qra_search.errors import DISTRIBUTION, BadInput
from qra_search.executors.base import Factory, WorkerDied, WorkerExecutor

DEVICE_VARIABLE = "QRA_DEVICE"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_environment_lock = Lock()


class ProcessExecutor(WorkerExecutor):
    """Evaluates in `workers` processes, which are spawned (never forked), build their evaluator once and keep it.

    Each is a pool of one process, so that one that dies breaks no other's. Its variables are set before the process
    starts (see `make_environment`), `QRA_DEVICE` among them.

    Args:
        factory: builds the evaluator in the worker; must be picklable and importable there.
        devices: one for each worker, `cpu` or of the form `cuda:0`; default: `cpu` for all.

    A program that uses it from a script needs the guard `if __name__ == "__main__":` that all spawned processes need.
    """

    def __init__(self, factory: Factory, workers: int = 1, *, devices: Sequence[str] | None = None):
        self.devices = list(devices or ["cpu"] * workers)
        super().__init__(factory, len(self.devices))
        self._variables = [make_environment(name, self.slots) for name in self.devices]

    def start_worker(self, slot: int) -> ProcessWorker:
        return ProcessWorker(self._variables[slot])


class ProcessWorker:
    def __init__(self, variables: dict[str, str]):
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_initialize_worker
        )
        with export_variables(variables), _block_interrupts():
            self._pool.submit(os.getpid)  # which starts the process
            (self._process,) = self._pool._processes.values()  # type: ignore[union-attr]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return self._pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise WorkerDied(self._describe_exit()) from None

    def _describe_exit(self) -> str:
        self._pool.shutdown()  # waits for the exit status
        code = self._process.exitcode
        if code is not None and code < 0:
            memory = ", as the kernel does when memory is full" if code == -signal.SIGKILL else ""
            return f"the worker was ended by {signal.Signals(-code).name}{memory}"
        return f"the worker ended with exit status {code}"

    def kill(self) -> None:
        _kill_group(self._process.pid)
        self._process.kill()


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """A process that is started meanwhile hears no Ctrl-C: that is for the study."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_group(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # it has no group yet, or nothing of it is left
            os.killpg(pid, signal.SIGKILL)


def _initialize_worker() -> None:
    """Before the first request: the worker leads a process group, and ends with the study's process."""
    os.setsid()  # one kill ends all that is started in here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules:  # the main module imported it before its variables could count
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _kill_group(os.getpid())
        os._exit(1)


class RayExecutor(WorkerExecutor):
    """Evaluates in `workers` Ray actors, each of which builds its evaluator once and keeps it.

    Args:
        address: of an existing cluster (`auto`, `ray://host:10001`); None: Ray is started on this machine, unless it
            runs already, and ended at shutdown.
        with_gpus: whether each actor has a GPU, which Ray assigns; None: if the cluster has any. An actor without one
            sees none. `QRA_DEVICE` tells it (`cuda` or `cpu`).

    Raises:
        ImportError: Ray is not installed; the extra `ray` brings it.
        BadInput: the cluster, as it is now, has too few GPUs for so many workers.
    """

    def __init__(
        self, factory: Factory, workers: int, *, address: str | None = None, with_gpus: bool | None = False
    ):
        super().__init__(factory, workers)
        try:
            import ray
        except ImportError as error:
            raise ImportError(f"Ray is not installed: `pip install '{DISTRIBUTION}[ray]'`") from error
        self._ray = ray
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            dashboard = False if address is None else None
            ray.init(address=address, log_to_driver=False, include_dashboard=dashboard)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self._device = "cuda" if with_gpus or (with_gpus is None and gpus) else "cpu"
        if self._device == "cuda":  # an actor that fits nowhere would wait for ever
            try:
                check_enough_gpus(gpus, workers)
            except BadInput:
                self.shutdown()
                raise
        # Ray's own restarts are off: a fresh actor is made here, and the evaluation is counted as run twice.
        gpu = int(self._device == "cuda")
        remote = ray.remote(num_cpus=1, num_gpus=gpu, max_restarts=0, max_task_retries=0)
        self._actor_class: Any = remote(_Actor)

    def start_worker(self, slot: int) -> RayWorker:
        return RayWorker(self._ray, self._actor_class.remote(self._device))

    def shutdown(self) -> None:
        super().shutdown()
        if self._started_ray:
            self._started_ray = False
            self._ray.shutdown()


class RayWorker:
    def __init__(self, ray: Any, actor: Any):
        self._ray = ray
        self._actor = actor

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(self._actor.call.remote(function, *args))
        except errors.RayTaskError as error:
            raise error.cause from None
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
            raise WorkerDied(
                f"a worker, which is a Ray actor, died ({' '.join(str(error).split())[:200]})"
            ) from None

    def kill(self) -> None:
        self._ray.kill(self._actor, no_restart=True)


class _Actor:
    def __init__(self, device: str):
        os.environ[DEVICE_VARIABLE] = device
        if device == "cpu":  # newer Rays leave the GPUs in sight of actors that asked for none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


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
    return {DEVICE_VARIABLE: kind, "CUDA_VISIBLE_DEVICES": index, **limit_threads(max(1, cores // workers))}


def limit_threads(count: int) -> dict[str, str]:
    """Variables that hold linear algebra to so many threads, in processes that are started with them."""
    return dict.fromkeys(_THREAD_VARIABLES, str(count))


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
