"""Evaluations in any pool that keeps to `concurrent.futures`: Dask, MPI, submitit, or the standard library's own."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future
from concurrent.futures import Executor as Pool
from typing import Any

from qra_search.evaluation.evaluator import Evaluation
from qra_search.executors.base import DeadlineExceeded, WorkerDied, WorkerUnusable
from qra_search.executors.slots import ATTEMPTS
from qra_search.executors.work import (
    Factory,
    Reply,
    Request,
    evaluation_request,
    handle,
    to_evaluation,
    unpack,
)
from qra_search.log.trial import Proposal


class FuturesExecutor:
    """Evaluates in a pool of another package.

    Every worker of the pool (every thread, where it has threads) builds its evaluator once and keeps it.

    Args:
        pool: a pool, which stays the caller's; or a function that makes one, which is then shut down here, and
            made anew when it breaks, in which case the evaluations in flight are run again once. What its `submit`
            returns needs `result` alone (as a job of submitit has it): it is then waited for in a thread.
        factory: builds the evaluator; picklable where the pool's workers are processes.
        slots: evaluations at a time.
        deadline: seconds that one evaluation may take. A pool cannot stop it, so its worker stays lost to it; the
            result is ignored when it comes after all.
    """

    def __init__(self, pool: Pool | Callable[[], Pool], factory: Factory, slots: int, *, deadline: float | None = None):
        if slots < 1:
            raise ValueError(f"at least one slot is needed, got {slots}")
        self.slots = slots
        self._make = None if hasattr(pool, "submit") else pool
        self._pool: Any = pool if self._make is None else self._make()
        self._factory, self._deadline = factory, deadline
        self._token = uuid.uuid4().hex  # tells one executor's evaluator from another's: factories have no equality
        self._lock = threading.RLock()
        self._late = 0
        self._closed = False
        self._open: set[_Lease] = set()

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        return self._submit(evaluation_request(proposal), to_evaluation)

    def ask(self, request: Request) -> Future[Any]:
        """Have a worker serve a request."""
        return self._submit(request, lambda value: value)

    def shutdown(self) -> None:
        """Give up what is in flight; a pool that was made here is shut down, another is left as it is."""
        with self._lock:
            self._closed = True
            leases = list(self._open)
        for lease in leases:
            lease.end(error=WorkerUnusable("the executor was shut down"))
            lease.cancel()
        if self._make is not None:
            self._pool.shutdown(wait=False)

    def __enter__(self) -> FuturesExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _submit(self, request: Request, decode: Callable[[Any], Any]) -> Future[Any]:
        lease = _Lease(request, decode, self._forget)
        with self._lock:
            if self._closed:
                raise WorkerUnusable("the executor was shut down")
            self._open.add(lease)
        self._start(lease, attempt=1)
        return lease.future

    def _start(self, lease: _Lease, attempt: int) -> None:
        with self._lock:
            pool = self._pool
        try:
            running = _as_future(pool.submit(_serve, self._token, self._factory, lease.request))
        except (BrokenExecutor, RuntimeError) as error:
            if isinstance(error, BrokenExecutor) and self._replace(pool):
                self._start(lease, attempt)
            else:
                lease.end(error=WorkerUnusable(f"the pool takes no more work ({type(error).__name__}: {error})"))
            return
        lease.running = running
        if self._deadline is not None:
            lease.start_timer(self._deadline, lambda: self._expire(lease, running))
        running.add_done_callback(lambda done: self._ended(lease, done, pool, attempt))

    def _ended(self, lease: _Lease, running: Future[Reply], pool: Pool, attempt: int) -> None:
        if lease.running is not running:
            return  # the lease is another attempt's by now
        if lease.future.done():
            with self._lock:
                self._late -= lease.late  # the worker is back; its result comes too late to count
            return
        lease.stop_timer()
        try:
            reply = running.result()
        except (BrokenExecutor, CancelledError) as error:
            if not isinstance(error, BrokenExecutor) or not self._replace(pool):
                lease.end(error=WorkerUnusable(f"the pool is broken ({type(error).__name__}: {error})"))
            elif attempt < ATTEMPTS:
                self._start(lease, attempt + 1)
            else:
                lease.end(error=WorkerDied(f"the pool broke twice during this evaluation ({error})"))
        except Exception as error:  # the pool's own failure: a dead worker of Dask, a job that the queue refused
            lease.end(error=error)
        else:
            if "unusable" in reply:
                lease.end(error=WorkerUnusable(f"the evaluator cannot be built: {reply['unusable']}"))
                return
            try:
                value = lease.decode(unpack(reply))
            except Exception as error:  # the evaluation's own failure
                lease.end(error=error)
            else:
                lease.end(value=value)

    def _replace(self, broken: Pool) -> bool:
        """Make a new pool in place of a broken one; False where the pool is not ours to make."""
        with self._lock:
            if self._make is None or self._closed:
                return False
            if self._pool is broken:
                self._pool = self._make()
            return True

    def _expire(self, lease: _Lease, running: Future[Reply]) -> None:
        """Time is up: end the lease, unless its request may still be queued behind evaluations that hang.

        Not every pool says what runs: without a hanging evaluation all that was submitted is taken to run.
        """
        with self._lock:
            late = self._late
        if late and not running.running() and not running.done():
            if late >= self.slots:
                lease.end(error=WorkerUnusable(f"all {self.slots} workers of the pool hang"))
                return
            if lease.extended < late and self._deadline is not None:
                lease.extended += 1
                lease.start_timer(self._deadline, lambda: self._expire(lease, running))
                return
        with self._lock:
            if lease.end(error=DeadlineExceeded(f"the evaluation took longer than {self._deadline:g} seconds")):
                lease.late = 1
                self._late += 1

    def _forget(self, lease: _Lease) -> None:
        with self._lock:
            self._open.discard(lease)


def dask_executor(address: str, factory: Factory, slots: int, *, deadline: float | None = None) -> FuturesExecutor:
    """Evaluate on the Dask cluster whose scheduler has this address.

    Raises:
        ImportError: `distributed` is not installed.
    """
    from distributed import Client

    def connect() -> Any:
        return _DaskPool(Client(address))

    return FuturesExecutor(connect, factory, slots, deadline=deadline)


class _DaskPool:
    """Dask's own executor, closed together with its client."""

    def __init__(self, client: Any):
        self._client = client
        self._executor = client.get_executor(pure=False, retries=0)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._executor.submit(function, *arguments)

    def shutdown(self, wait: bool = True) -> None:
        self._executor.shutdown(wait=wait)
        self._client.close()


class _Lease:
    """One request in the hands of a pool: its future ends once, whoever comes first."""

    def __init__(self, request: Request, decode: Callable[[Any], Any], ended: Callable[[_Lease], None]):
        self.request, self.decode = request, decode
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()
        self.running: Future[Reply] | None = None
        self.late = self.extended = 0
        self._ended = ended
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def end(self, *, value: Any = None, error: BaseException | None = None) -> bool:
        """End the future; False, and nothing done, where it has ended before."""
        with self._lock:
            if self.future.done():
                return False
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(value)
        self.stop_timer()
        self._ended(self)
        return True

    def cancel(self) -> None:
        if self.running is not None:
            self.running.cancel()

    def start_timer(self, seconds: float, expired: Callable[[], None]) -> None:
        self.stop_timer()
        self._timer = threading.Timer(seconds, expired)
        self._timer.daemon = True
        self._timer.start()

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _as_future(job: Any) -> Future[Any]:
    """The job itself where it is a future, else one that ends when `job.result()` does."""
    if hasattr(job, "add_done_callback"):
        return job
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def watch() -> None:
        try:
            value = job.result()
        except BaseException as error:  # whatever a pool of another package raises is the job's end
            future.set_exception(error)
        else:
            future.set_result(value)

    threading.Thread(target=watch, name="qra-job", daemon=True).start()
    return future


# -- in the worker ---------------------------------------------------------------------------------

_own = threading.local()


def _serve(token: str, factory: Factory, request: Request) -> Reply:
    """Serve a request with the evaluator of this thread, which is built at its first request."""
    if getattr(_own, "token", None) != token:
        _own.evaluator = _own.token = None  # another study's evaluator is not kept beside the new one
        try:
            _own.evaluator = factory()
        except (Exception, SystemExit) as error:
            return {"unusable": f"{type(error).__name__}: {error}"}
        _own.token = token
    return handle(_own.evaluator, request)
