"""Worker processes on this machine, each with its own evaluator and its own share of GPUs or threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any

from qra_search.executors.base import WorkerDied
from qra_search.executors.devices import export_variables, make_environment
from qra_search.executors.workers import Factory, WorkerExecutor


class ProcessExecutor(WorkerExecutor):
    """Evaluates in `workers` processes, which are spawned (never forked), build their evaluator once and keep it.

    Each is a pool of one process, so that one that dies breaks no other's. Its variables are set before the process
    starts (see `devices.make_environment`), `QRA_DEVICE` among them.

    Args:
        factory: builds the evaluator in the worker; must be picklable and importable there.
        workers: how many; default: one for each device.
        devices: names of the form `cuda:0`, `cuda:0,cuda:1` or `cpu`, given to the workers in turn; default: `cpu`.

    A program that uses it from a script needs the guard `if __name__ == "__main__":` that all spawned processes need.
    """

    def __init__(self, factory: Factory, workers: int | None = None, *, devices: Sequence[str] | None = None):
        names = list(devices or ["cpu"])
        super().__init__(factory, workers if workers is not None else len(names))
        self.devices = [names[slot % len(names)] for slot in range(self.slots)]
        self._variables = [
            make_environment(name, self.slots, self.devices.count(name)) for name in self.devices
        ]

    def start_worker(self, slot: int) -> ProcessWorker:
        return ProcessWorker(self._variables[slot])


class ProcessWorker:
    """A pool of one process."""

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
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_group(pid: int | None) -> None:
    if pid is not None and hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # it has no group yet, or nothing of it is left
            os.killpg(pid, signal.SIGKILL)


def _initialize_worker() -> None:
    """Before the first request: the worker leads a process group, and ends with the study's process."""
    if hasattr(os, "setsid"):
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
