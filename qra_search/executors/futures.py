"""Evaluations in any pool that keeps to `concurrent.futures`: Dask, MPI, submitit, or the standard library's own."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import BrokenExecutor, CancelledError, Future
from typing import Any

from qra_search.errors import install_hint
from qra_search.executors.base import WorkerUnusable
from qra_search.executors.work import Factory, RemoteExecutor, Reply, Request, build, handle, unpack


class FuturesExecutor(RemoteExecutor):
    """Evaluates in a pool of another package, which stays the caller's.

    Every worker of the pool (every thread, if it has threads) builds its evaluator once and keeps it. Such a pool
    cannot stop an evaluation, so there is no deadline here: `ProcessExecutor` and `RayExecutor` have one. A pool that
    breaks stops the study, which leaves the trials in flight to be run when it is resumed.

    Args:
        pool: has `submit`. What that returns needs `result` alone (as a job of submitit has it): a thread waits for it.
        factory: builds the evaluator; picklable if the pool's workers are processes.
        slots: evaluations at a time.
    """

    def __init__(self, pool: Any, factory: Factory, slots: int):
        super().__init__(slots)
        self._pool, self._factory = pool, factory
        self._token = uuid.uuid4().hex  # tells one executor's evaluator from another's: factories have no equality
        self._jobs: dict[Future[Any], Any] = {}

    def ask(self, request: Request) -> Future[Any]:
        if self._closed:
            raise WorkerUnusable("the executor was shut down")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            job = self._pool.submit(_serve, self._token, self._factory, request)
        except RuntimeError as error:  # the pool is broken, or was shut down
            future.set_exception(WorkerUnusable(f"the pool takes no more work ({type(error).__name__}: {error})"))
            return future
        self._jobs[future] = job
        threading.Thread(target=self._watch, args=(job, future), name="qra-job", daemon=True).start()
        return future

    def shutdown(self) -> None:
        """Cancel what the pool has not begun; what runs there is left to end."""
        self._closed = True
        for job in list(self._jobs.values()):
            if isinstance(job, Future):
                job.cancel()

    def _watch(self, job: Any, future: Future[Any]) -> None:
        try:
            value = unpack(job.result())
        except (BrokenExecutor, CancelledError) as error:
            reason = "the executor was shut down" if self._closed else f"the pool is broken ({error!r})"
            future.set_exception(WorkerUnusable(reason))
        except BaseException as error:  # the evaluation's own failure, or whatever a pool of another package raises
            future.set_exception(error)
        else:
            future.set_result(value)
        finally:
            self._jobs.pop(future, None)


class DaskExecutor(FuturesExecutor):
    """Evaluates on a Dask cluster; runs again what a dead worker had.

    Args:
        address: of the cluster's scheduler, such as `tcp://host:8786`.
        factory: builds the evaluator; picklable.
        slots: evaluations at a time.

    Raises:
        ImportError: `distributed` is not installed; the extra `dask` brings it.
    """

    def __init__(self, address: str, factory: Factory, slots: int):
        try:
            from distributed import Client
        except ImportError as error:
            raise ImportError(f"Dask is not installed: `{install_hint('dask')}`", name="distributed") from error
        self._client = Client(address)
        super().__init__(self._client.get_executor(pure=False, retries=0), factory, slots)

    def shutdown(self) -> None:
        super().shutdown()
        self._pool.shutdown(wait=False)
        self._client.close()


# -- in the worker ---------------------------------------------------------------------------------

_own = threading.local()


def _serve(token: str, factory: Factory, request: Request) -> Reply:
    """Serve a request with the evaluator of this thread, which is built at its first request."""
    if getattr(_own, "token", None) != token:
        _own.evaluator = _own.token = None  # another study's evaluator is not kept beside the new one
        _own.evaluator, reply = build(factory)
        if _own.evaluator is None:
            return reply
        _own.token = token
    return handle(_own.evaluator, request)
