"""Keeps several workers busy: a thread for each slot hands out requests, replaces dead ones, kills slow ones."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from qra_search.executors.base import DeadlineExceeded, WorkerDied, WorkerUnusable
from qra_search.executors.work import RemoteExecutor, Reply, Request, unpack

ATTEMPTS = 2
"""Workers that may die on one request before it fails: the first death may not have been the plan's fault."""
JOIN_SECONDS = 10.0


class Worker(ABC):
    """One worker, as its slot's thread sees it. Made at once; the first request waits until it has its evaluator."""

    ready = False

    def serve(self, request: Request) -> Any:
        """Wait for the value of the reply.

        Raises:
            WorkerDied, DeadlineExceeded: the worker is of no use any more.
            WorkerUnusable: nor would another be.
        """
        if not self.ready:
            unpack(self.built())
            self.ready = True
        return unpack(self.reply(request))

    @abstractmethod
    def built(self) -> Reply:
        """Wait for what `work.build` replies."""

    @abstractmethod
    def reply(self, request: Request) -> Reply:
        """Wait for the reply, no longer than the deadline."""

    @abstractmethod
    def kill(self) -> None:
        """End the worker at once, with all that it started; may be called from another thread, and twice."""


@dataclass(frozen=True)
class _Job:
    request: Request
    future: Future[Any]


class WorkerExecutor(RemoteExecutor):
    """An executor with `slots` workers, each made when it is first needed and kept.

    A worker that dies is replaced, and its evaluation is run again once. `shutdown`, or leaving a `with` block,
    kills the workers.
    """

    def __init__(self, slots: int):
        super().__init__(slots)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._workers: set[Worker] = set()
        self._unfinished = 0

    @abstractmethod
    def start_worker(self) -> Worker:
        """A new worker; called in the thread of its slot."""

    def ask(self, request: Request) -> Future[Any]:
        job = _Job(request, Future())
        with self._lock:
            if self._closed:
                raise _shut_down()
            self._jobs.put(job)
            self._unfinished += 1
            if len(self._threads) < min(self._unfinished, self.slots):
                # A daemon: a program that forgets `shutdown` ends all the same, and its workers with it.
                thread = threading.Thread(target=self._run_slot, name=f"qra-slot-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return job.future

    def shutdown(self) -> None:
        """Kill the workers; evaluations in flight end with `WorkerUnusable`, so that no log calls them failed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads, workers = list(self._threads), list(self._workers)
        for worker in workers:
            worker.kill()
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(JOIN_SECONDS)
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                self._end(job, error=_shut_down())

    def _run_slot(self) -> None:
        worker: Worker | None = None
        while (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                worker = self._serve(job, worker)
            else:
                self._count_end()

    def _serve(self, job: _Job, worker: Worker | None) -> Worker | None:
        """End the job's future; returns the worker that is left, None if it is gone."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                worker = worker or self._started()
                value = worker.serve(job.request)
            except (WorkerDied, DeadlineExceeded, WorkerUnusable) as error:
                self._drop(worker)
                worker = None
                if self._closed:
                    self._end(job, error=_shut_down())
                elif not isinstance(error, WorkerDied):
                    self._end(job, error=error)
                elif attempt == ATTEMPTS:
                    self._end(job, error=WorkerDied(f"{error}, and so did the one before it on the same plan"))
                else:
                    continue
            except Exception as error:  # the evaluation's own failure: the worker is as good as before
                self._end(job, error=error)
            else:
                self._end(job, value=value)
            return worker
        raise AssertionError("unreachable")

    def _started(self) -> Worker:
        try:
            worker = self.start_worker()
        except Exception as error:
            raise WorkerUnusable(f"no worker can be started ({type(error).__name__}: {error})") from error
        with self._lock:
            self._workers.add(worker)
            closed = self._closed
        if closed:
            self._drop(worker)
            raise _shut_down()
        return worker

    def _drop(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.kill()
            with self._lock:
                self._workers.discard(worker)

    def _end(self, job: _Job, *, value: Any = None, error: BaseException | None = None) -> None:
        self._count_end()
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(value)

    def _count_end(self) -> None:
        with self._lock:
            self._unfinished -= 1


def _shut_down() -> WorkerUnusable:
    return WorkerUnusable("the executor was shut down")
