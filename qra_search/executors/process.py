"""Worker processes on this machine, each with its own evaluator and its own share of GPUs or threads."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import multiprocessing.util  # registers its exit handler, which waits for children: ours has to run before it
import os
import signal
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

from qra_search.executors.base import DeadlineExceeded, WorkerDied
from qra_search.executors.devices import environment, exported
from qra_search.executors.slots import Worker, WorkerExecutor
from qra_search.executors.work import Factory, Reply, Request, build, handle

MAX_REPLY = 256 << 20


class ProcessExecutor(WorkerExecutor):
    """Evaluates in `workers` processes, which are spawned (never forked), build their evaluator once and keep it.

    Devices are leased: a worker takes the one that has been free the longest, and gives it back when it ends; its
    variables are set before the process starts (see `devices.environment`), `QRA_DEVICE` among them.

    Args:
        factory: builds the evaluator in the worker; must be picklable and importable there.
        workers: how many; default: one for each device.
        devices: names of the form `cuda:0`, `cuda:0,cuda:1` or `cpu`; default: `cpu`.
        deadline: seconds that one evaluation may take once the worker is ready; then it is killed.

    A program that uses it from a script needs the guard `if __name__ == "__main__":` that all spawned processes need.
    """

    def __init__(
        self,
        factory: Factory,
        workers: int | None = None,
        *,
        devices: Sequence[str] | None = None,
        deadline: float | None = None,
    ):
        if deadline is not None and not deadline > 0:
            raise ValueError(f"a deadline of more than 0 seconds is needed, got {deadline}")
        if workers is None:
            workers = len(devices) if devices else 1
        super().__init__(workers)
        names = list(devices or ["cpu"])
        for name in names:
            environment(name, 1)  # refuses a device of an unknown form here, not in a slot's thread
        self._free = deque(names[i % len(names)] for i in range(max(workers, len(names))))
        self._sharing = Counter(self._free)
        self._factory, self._deadline = factory, deadline
        _open.add(self)

    def start_worker(self) -> Worker:
        device = self._free.popleft()
        try:
            return _ProcessWorker(
                self._factory,
                environment(device, self.slots, self._sharing[device]),
                self._deadline,
                ended=lambda: self._free.append(device),
                name=f"qra worker on {device}",
            )
        except BaseException:
            self._free.append(device)
            raise


class _ProcessWorker(Worker):
    def __init__(
        self,
        factory: Factory,
        variables: dict[str, str],
        deadline: float | None,
        ended: Callable[[], None],
        name: str,
    ):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, factory), name=name)
        self._deadline, self._ended = deadline, ended
        self._killed = self._group_ended = False
        self._kill_lock = threading.Lock()
        with exported(variables), _uninterrupted():
            self._process.start()
        theirs.close()

    def built(self) -> Reply:
        return self._receive(None)

    def reply(self, request: Request) -> Reply:
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
        except OSError:
            raise WorkerDied(self._how_it_ended()) from None
        return self._receive(self._deadline)

    def _receive(self, seconds: float | None) -> Reply:
        ready = wait([self._pipe, self._process.sentinel], seconds)
        if not ready:
            raise DeadlineExceeded(f"the evaluation took longer than {seconds:g} seconds and was stopped")
        try:
            if self._pipe.poll():
                return json.loads(self._pipe.recv_bytes(MAX_REPLY))
        except (OSError, EOFError, ValueError):
            raise WorkerDied(self._how_it_ended()) from None
        raise WorkerDied(self._how_it_ended())

    def _how_it_ended(self) -> str:
        self._end_group()
        self._process.join(1.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            memory = ", as the kernel does when memory is full" if code == -signal.SIGKILL else ""
            return f"the worker was ended by {signal.Signals(-code).name}{memory}"
        return f"the worker ended with exit status {code}"

    def kill(self) -> None:
        with self._kill_lock:
            if self._killed:
                return
            self._killed = True
        self._end_group()
        self._process.kill()
        self._process.join()
        self._ended()

    def _end_group(self) -> None:
        """End what the worker has started, once, and before it is reaped: until then its number is its own."""
        with self._kill_lock:
            first, self._group_ended = not self._group_ended, True
        if first:
            _kill_group(self._process.pid)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process that is started meanwhile hears no Ctrl-C while it imports; `_work` then ignores them."""
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
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # it had not come to making its own group, or nothing of it is left


# -- in the worker ---------------------------------------------------------------------------------


def _work(pipe: Connection, factory: Factory) -> None:
    """Build the evaluator, then serve requests until the study is gone."""
    if hasattr(os, "setsid"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from the keyboard is for the study
        os.setsid()  # one kill ends all that is begun in here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules:  # the main module imported it before its variables could count
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    evaluator, reply = build(factory)
    _send(pipe, reply)
    while evaluator is not None:
        try:
            request = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        _send(pipe, handle(evaluator, request))


def _send(pipe: Connection, reply: Reply) -> None:
    pipe.send_bytes(json.dumps(reply).encode())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _kill_group(os.getpid())
        os._exit(1)


_open: weakref.WeakSet[ProcessExecutor] = weakref.WeakSet()


@atexit.register
def _shut_down_all() -> None:
    for executor in list(_open):
        executor.shutdown()
