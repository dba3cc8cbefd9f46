"""Keeps several workers busy: starts each when it is needed, and replaces those that die."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from operator import methodcaller
from queue import LifoQueue
from typing import Any, TypeVar

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.evaluation.evaluator import Evaluation, Evaluator, RowCount
from qra_search.executors.base import Executor, WorkerDied, WorkerUnusable
from qra_search.executors.work import Factory, evaluate, identify, unwrap
from qra_search.log.trial import Proposal
from qra_search.space.space import Plan

ATTEMPTS = 2
"""Workers that may die on one request before it fails: the first death may not have been the plan's fault."""


class Worker(ABC):
    """A process or an actor with its own `work.WorkerEvaluator`."""

    @abstractmethod
    def request(self, method: str, *args: Any) -> Any:
        """What a method of `WorkerEvaluator` returns there; raises WorkerDied if the worker ends meanwhile."""

    @abstractmethod
    def kill(self) -> None:
        """End the worker at once, with all that it started; may be called from another thread, and twice."""


E = TypeVar("E", bound="WorkerExecutor")


class WorkerExecutor(Executor):
    """An executor with `slots` workers, each started when it is first needed and kept.

    A worker that dies is replaced, and its evaluation is run again once. Use it in a `with` block: at its end, or at
    `shutdown`, the workers are killed.
    """

    def __init__(self, factory: Factory, slots: int):
        if slots < 1:
            raise ValueError(f"at least one worker is needed, got {slots}")
        self.factory, self.slots = factory, slots
        self._threads = ThreadPoolExecutor(slots, "qra-worker")
        self._closed, self._lock = False, threading.Lock()
        self._workers: dict[int, Worker] = {}
        # The slot that was freed last is taken first, so that no worker is started while another is idle.
        self._free: LifoQueue[int] = LifoQueue()
        for slot in reversed(range(slots)):
            self._free.put(slot)

    @abstractmethod
    def start_worker(self, slot: int) -> Worker:
        """A new worker, whose evaluator is not built yet."""

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        return self.ask(evaluate, proposal)

    def ask(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call an importable function with the evaluator of a worker."""
        self._check_open()
        return self._threads.submit(self._run, function, *args)

    def shutdown(self) -> None:
        """Kill the workers; evaluations in flight end with `WorkerUnusable`, so that no log calls them failed."""
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
        for worker in workers:
            worker.kill()
        self._threads.shutdown()

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        slot = self._free.get()
        try:
            for _ in range(ATTEMPTS):
                worker = self._workers.get(slot) or self._start(slot)
                try:
                    return unwrap(worker.request("call", function, *args))
                except WorkerDied as error:
                    died = error
                    self._drop(slot)
            raise WorkerDied(f"{died}, and so did the one before it")
        finally:
            self._free.put(slot)

    def _start(self, slot: int) -> Worker:
        """A worker with its evaluator."""
        for _ in range(ATTEMPTS):
            with self._lock:
                self._check_open()
                try:
                    worker = self._workers[slot] = self.start_worker(slot)
                except Exception as error:
                    raise _not_started(error) from error
            try:
                unwrap(worker.request("build", self.factory))
                return worker
            except WorkerDied as error:
                died = error
                self._drop(slot)
            except WorkerUnusable:
                self._drop(slot)
                raise
            except Exception as error:  # the factory cannot be pickled
                self._drop(slot)
                raise _not_started(error) from error
        raise WorkerUnusable(f"{died} while it built the evaluator: try fewer workers")

    def _drop(self, slot: int) -> None:
        self._workers.pop(slot).kill()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise WorkerUnusable("the executor was shut down")


class RemoteEvaluator(Evaluator):
    """Stands for the evaluators of an executor's workers, so that the study's own process never loads the model; one
    worker is started to identify them."""

    def __init__(self, executor: WorkerExecutor):
        self._executor = executor
        self._identity: dict[str, Any] = executor.ask(identify).result()
        self.space, self.fidelities = self._identity["space"], self._identity["fidelities"]

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return self._executor.submit(Proposal(plan, fidelity, seed)).result()

    def sensitivities(self) -> Sensitivities | None:
        sensitivities: Sensitivities | None = self._executor.ask(methodcaller("sensitivities")).result()
        return sensitivities

    def describe(self) -> dict[str, Any]:
        return dict(self._identity["describe"])

    def sensitivities_charge(self) -> float | None:
        charge: float | None = self._identity["sensitivities_charge"]
        return charge

    def evaluation_seconds(self) -> float:
        return float(self._identity["evaluation_seconds"])

    def row_counts(self) -> Mapping[str, RowCount]:
        return dict(self._identity["row_counts"])


def _not_started(error: Exception) -> WorkerUnusable:
    return WorkerUnusable(f"no worker can be started ({type(error).__name__}: {error})")
