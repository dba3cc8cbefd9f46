"""Keeps several workers busy: hands out requests, replaces dead workers, kills slow ones."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, wait
from queue import LifoQueue
from typing import Any, TypeVar, cast

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.evaluation.evaluator import Evaluation, Evaluator, RowCount
from qra_search.executors.base import DeadlineExceeded, WorkerDied, WorkerUnusable
from qra_search.executors.work import IDENTITY, SENSITIVITIES, Reply, Request, evaluation_request, unpack
from qra_search.log.trial import Proposal
from qra_search.space.serialization import space_from_dict
from qra_search.space.space import Plan

ATTEMPTS = 2
"""Workers that may die on one request before it fails: the first death may not have been the plan's fault."""
END_SECONDS = 10.0


class Worker(ABC):
    """One worker. Made at once; the first request waits until it has its evaluator."""

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


E = TypeVar("E", bound="WorkerExecutor")


class WorkerExecutor(ABC):
    """An executor with `slots` workers, each made when it is first needed and kept.

    A worker that dies is replaced, and its evaluation is run again once. `shutdown`, or leaving a `with` block,
    kills the workers.
    """

    def __init__(self, slots: int):
        if slots < 1:
            raise ValueError(f"at least one worker is needed, got {slots}")
        self.slots = slots
        self._closed = False
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._unfinished: set[Future[Any]] = set()
        # What was last put back is taken first, so that no worker is made while another is idle.
        self._idle: LifoQueue[Worker | None] = LifoQueue()
        for _ in range(slots):
            self._idle.put(None)

    @abstractmethod
    def start_worker(self) -> Worker:
        """A new worker."""

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        return self.ask(evaluation_request(proposal))

    def ask(self, request: Request) -> Future[Any]:
        """Have a worker serve a request."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise _shut_down()
            self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        # A daemon: a program that forgets `shutdown` ends all the same, and its workers with it.
        threading.Thread(target=self._run, args=(request, future), name="qra-request", daemon=True).start()
        return future

    def shutdown(self) -> None:
        """Kill the workers; evaluations in flight end with `WorkerUnusable`, so that no log calls them failed."""
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        wait(list(self._unfinished), END_SECONDS)

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _run(self, request: Request, future: Future[Any]) -> None:
        worker = self._idle.get()
        value, error = None, None
        if begun := future.set_running_or_notify_cancel():
            worker, value, error = self._serve(request, worker)
        self._idle.put(worker)  # before the future ends: who waits for that may ask again at once
        if error is not None:
            future.set_exception(error)
        elif begun:
            future.set_result(value)

    def _serve(self, request: Request, worker: Worker | None) -> tuple[Worker | None, Any, BaseException | None]:
        """The worker that is left (None: it is gone), and the value or the error."""
        died: WorkerDied | None = None
        for _ in range(ATTEMPTS):
            was_ready = False
            try:
                worker = worker or self._started()
                return worker, worker.serve(request), None
            except (WorkerDied, DeadlineExceeded, WorkerUnusable) as error:
                was_ready = worker is not None and worker.ready
                self._drop(worker)
                worker = None
                if self._closed:
                    return None, None, _shut_down()
                if not isinstance(error, WorkerDied):
                    return None, None, error
                died = error
            except Exception as error:  # the evaluation's own failure: the worker is as good as before
                return worker, None, error
        if not was_ready:  # no plan is to blame
            return None, None, WorkerUnusable(f"{died} while it built the evaluator: try fewer workers")
        same = "the same plan" if request["do"] == "evaluate" else "the same request"
        return None, None, WorkerDied(f"{died}, and so did the one before it on {same}")

    def _started(self) -> Worker:
        with self._lock:
            if self._closed:
                raise _shut_down()
        try:
            worker = self.start_worker()
        except Exception as error:
            raise WorkerUnusable(f"no worker can be started ({type(error).__name__}: {error})") from error
        with self._lock:
            self._workers.add(worker)
            if not self._closed:
                return worker
        self._drop(worker)
        raise _shut_down()

    def _drop(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.kill()
            with self._lock:
                self._workers.discard(worker)


class RemoteEvaluator(Evaluator):
    """An evaluator that lives in the workers of an executor: the study's own process never loads the model.

    Args:
        executor: a `ProcessExecutor` or `RayExecutor`.
    """

    def __init__(self, executor: WorkerExecutor):
        self._executor = executor
        self._told = told = executor.ask(IDENTITY).result()
        self.space, self.fidelities = space_from_dict(told["space"]), tuple(told["fidelities"])

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return self._executor.submit(Proposal(plan, fidelity, seed)).result()

    def sensitivities(self) -> Sensitivities | None:
        data = self._executor.ask(SENSITIVITIES).result()
        return None if data is None else Sensitivities.from_dict(data)

    def describe(self) -> dict[str, Any]:
        return dict(self._told["description"])

    def sensitivities_charge(self) -> float | None:
        return cast("float | None", self._told["charge"])

    def evaluation_seconds(self) -> float:
        return float(self._told["seconds"])

    def row_counts(self) -> Mapping[str, RowCount]:
        return {split: RowCount(**count) for split, count in self._told["rows"].items()}


def _shut_down() -> WorkerUnusable:
    return WorkerUnusable("the executor was shut down")
