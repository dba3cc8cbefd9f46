"""Where evaluations run: the small interface of a study to its workers, in this process or in others."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from operator import methodcaller
from typing import Any

from qra_search.errors import EvaluationFailed, RunFailed, describe_failure, format_error
from qra_search.evaluator import Evaluator, check_evaluation
from qra_search.schemas import Evaluation, Plan, Proposal, Sensitivities

MAX_ATTEMPTS = 2
"""Workers that may die on one request before it fails: the first death may not have been the plan's fault."""
Factory = Callable[[], Evaluator]
"""Builds the evaluator in the worker; picklable: a module-level function, a `functools.partial` of one, a class."""


class WorkerDied(RuntimeError):
    """Two workers ended during the same evaluation: the trial has failed."""


class WorkerUnusable(RunFailed):
    """No worker can evaluate anything: the study stops, and the trial stays open until it is resumed."""


class Executor(ABC):
    """Runs evaluations, `slots` of them at a time."""

    slots: int

    @abstractmethod
    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        """Start an evaluation; if it fails, the future ends with its exception."""

    def wait(self, futures: Iterable[Future[Evaluation]]) -> Iterable[Future[Evaluation]]:
        """Wait until a future ends; returns all that have."""
        return wait(futures, return_when=FIRST_COMPLETED).done

    def shutdown(self) -> None:
        """Free the workers; running evaluations are given up."""
        return None


class InProcessExecutor(Executor):
    """Evaluates at once, in this process."""

    slots = 1

    def __init__(self, evaluator: Evaluator):
        self.evaluator = evaluator

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        future: Future[Evaluation] = Future()
        try:
            future.set_result(evaluate(self.evaluator, proposal))
        except (Exception, SystemExit) as error:  # the study records it as the reason of a failed trial
            future.set_exception(error)
        return future


class WorkerExecutor(Executor, AbstractContextManager["WorkerExecutor"]):
    """An executor with `slots` workers, each started when it is first needed and kept.

    A worker that dies is replaced, and its evaluation is run again once. Use it in a `with` block: at its end, or at
    `shutdown`, the workers are killed.
    """

    def __init__(self, factory: Factory, slots: int):
        self.factory = factory
        self.slots = slots
        self._threads = ThreadPoolExecutor(slots, "qra-worker")
        self._slot_of_thread: dict[int, int] = {}
        self._workers: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    @abstractmethod
    def start_worker(self, slot: int) -> Any:
        """A new worker, whose evaluator is not built yet.

        Its `call(function, *args)` gives what an importable function returns there, and raises WorkerDied if the worker
        ends meanwhile. Its `kill()` ends it at once, with all that it started; from any thread, and twice.
        """

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        return self.call(evaluate, proposal)

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call an importable function with the evaluator of a worker."""
        self._check_open()
        return self._threads.submit(self._run, function, *args)

    def shutdown(self) -> None:
        """Kill the workers; evaluations in flight end with `WorkerUnusable`, so that no log calls them failed."""
        with self._lock:
            self._is_closed = True
            workers = list(self._workers.values())
        for worker in workers:
            worker.kill()
        self._threads.shutdown()

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Every thread of the pool has one worker, and the pool starts no thread while another is idle."""
        with self._lock:
            slot = self._slot_of_thread.setdefault(threading.get_ident(), len(self._slot_of_thread))
        for _ in range(MAX_ATTEMPTS):
            try:
                worker = self._workers.get(slot) or self._start(slot)
                return worker.call(call_evaluator, function, *args)
            except WorkerDied as error:
                died = error
                self._drop(slot)
        raise WorkerDied(
            f"{died}, and so did the worker started in its place: if memory is short, use fewer of them"
        )

    def _start(self, slot: int) -> Any:
        try:
            with self._lock:
                self._check_open()
                worker = self._workers[slot] = self.start_worker(slot)
            worker.call(build_evaluator, self.factory)
        except Exception as error:  # the worker cannot be started, the factory cannot be pickled, or fails
            self._drop(slot)
            if isinstance(error, WorkerUnusable):
                raise
            reason = error if isinstance(error, WorkerDied) else f"{type(error).__name__}: {error}"
            raise WorkerUnusable(
                f"a worker cannot be started ({reason}): if memory is short, use fewer of them"
            ) from error
        return worker

    def _drop(self, slot: int) -> None:
        worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.kill()
        self._check_open()

    def _check_open(self) -> None:
        if self._is_closed:
            raise WorkerUnusable(
                "the workers are shut down and evaluate no more plans: start the search again"
            )


class RemoteEvaluator(Evaluator):
    """Stands for the evaluators of an executor's workers, so that the study's own process never loads the model; one
    worker is started to identify them."""

    def __init__(self, executor: WorkerExecutor):
        self._executor = executor
        self.space, self.fidelities, self._description = executor.call(identify_evaluator).result()

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return self._executor.submit(Proposal(plan, fidelity, seed)).result()

    def sensitivities(self) -> Sensitivities | None:
        sensitivities: Sensitivities | None = self._executor.call(methodcaller("sensitivities")).result()
        return sensitivities

    def describe(self) -> dict[str, Any]:
        return dict(self._description)


_evaluators: list[Evaluator] = []
"""In a worker: its evaluator, once it is built."""


def build_evaluator(factory: Factory) -> None:
    """In a worker: build its evaluator; raises WorkerUnusable if it cannot be built."""
    try:
        _evaluators[:] = [factory()]
    except (Exception, SystemExit) as error:
        raise WorkerUnusable(f"a worker cannot build its evaluator: {format_error(error)}") from None


def call_evaluator(function: Callable[..., Any], *args: Any) -> Any:
    """In a worker: what an importable function returns for its evaluator.

    Raises EvaluationFailed for any exception, whose own class may not be importable where the study runs.
    """
    try:
        return function(*_evaluators, *args)
    except (Exception, SystemExit) as error:
        raise EvaluationFailed(describe_failure(error)) from None


def evaluate(evaluator: Evaluator, proposal: Proposal) -> Evaluation:
    evaluation = evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)
    return check_evaluation(evaluation, evaluator.space, proposal.plan)


def identify_evaluator(evaluator: Evaluator) -> tuple[Any, ...]:
    """What a study asks of its evaluator before it evaluates anything: space, fidelities and description."""
    return evaluator.space, tuple(evaluator.fidelities), evaluator.describe()
