"""Workers that keep an evaluator each, whatever runs them: started when needed, replaced when they die."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import methodcaller
from queue import LifoQueue
from typing import Any, Protocol, Self

from qra_search.errors import BadInput, EvaluationFailed, convert_to_bad_input, describe, describe_problem
from qra_search.evaluator import Evaluator, check_evaluation
from qra_search.executors.base import Executor, InputUnusable, WorkerDied, WorkerUnusable
from qra_search.log.journal import to_printable
from qra_search.schemas import Evaluation, Plan, Proposal, Sensitivities

ATTEMPTS = 2
"""Workers that may die on one request before it fails: the first death may not have been the plan's fault."""
Factory = Callable[[], Evaluator]
"""Builds the evaluator in the worker; picklable: a module-level function, a `functools.partial` of one, a class."""


class Worker(Protocol):
    """A process of its own, on this machine or on another."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What an importable function returns there; raises WorkerDied if the worker ends meanwhile."""

    def kill(self) -> None:
        """End the worker at once, with all that it started; may be called from another thread, and twice."""


class WorkerExecutor(Executor):
    """An executor with `slots` workers, each started when it is first needed and kept.

    A worker that dies is replaced, and its evaluation is run again once. Use it in a `with` block: at its end, or at
    `shutdown`, the workers are killed.
    """

    def __init__(self, factory: Factory, slots: int):
        if slots < 1:
            raise ValueError(f"at least one worker is needed, got {slots}")
        self.factory = factory
        self.slots = slots
        self._threads = ThreadPoolExecutor(slots, "qra-worker")
        self._is_closed = False
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}
        # The slot that was freed last is taken first, so that no worker is started while another is idle.
        self._free: LifoQueue[int] = LifoQueue()
        for slot in reversed(range(slots)):
            self._free.put(slot)

    @abstractmethod
    def start_worker(self, slot: int) -> Worker:
        """A new worker, whose evaluator is not built yet."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        slot = self._free.get()
        try:
            for _ in range(ATTEMPTS):
                is_built = slot in self._workers
                try:
                    worker = self._workers.get(slot) or self._start(slot)
                    is_built = True
                    return check_reply(worker.call(call_evaluator, function, *args))
                except WorkerDied as error:
                    died = error
                    self._drop(slot)
            if is_built:
                raise WorkerDied(f"{died}, as did its replacement")
            raise WorkerUnusable(f"{died} while building the evaluator: try fewer workers")
        finally:
            self._free.put(slot)

    def _start(self, slot: int) -> Worker:
        """A worker with its evaluator; raises WorkerDied if it ends while building it."""
        try:
            with self._lock:
                self._check_open()
                worker = self._workers[slot] = self.start_worker(slot)
            failure = worker.call(build_evaluator, self.factory)
        except (WorkerDied, WorkerUnusable):
            self._drop(slot)
            raise
        except Exception as error:  # it cannot be started, or the factory cannot be pickled
            self._drop(slot)
            raise WorkerUnusable(f"no worker can be started ({type(error).__name__}: {error})") from error
        if failure is not None:
            self._drop(slot)
            kind = InputUnusable if failure.is_input else WorkerUnusable
            raise kind(f"the evaluator cannot be built: {failure.message}")
        return worker

    def _drop(self, slot: int) -> None:
        worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.kill()
        self._check_open()

    def _check_open(self) -> None:
        if self._is_closed:
            raise WorkerUnusable("the executor was shut down")


class RemoteEvaluator(Evaluator):
    """Stands for the evaluators of an executor's workers, so that the study's own process never loads the model; one
    worker is started to identify them."""

    def __init__(self, executor: WorkerExecutor):
        self._executor = executor
        self.space, self.fidelities, self._description = executor.call(identify).result()

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return self._executor.submit(Proposal(plan, fidelity, seed)).result()

    def sensitivities(self) -> Sensitivities | None:
        sensitivities: Sensitivities | None = self._executor.call(methodcaller("sensitivities")).result()
        return sensitivities

    def describe(self) -> dict[str, Any]:
        return dict(self._description)


@dataclass(frozen=True)
class Failure:
    """An exception as text, since its class may not be importable where the study runs.

    Attributes:
        name: of its class.
        is_input: whether what the user gave is the reason.
    """

    name: str
    message: str
    is_input: bool = False


_evaluators: list[Evaluator] = []
"""In a worker: its evaluator, once it is built."""


def build_evaluator(factory: Factory) -> Failure | None:
    """In a worker: build its evaluator; returns the failure, if it cannot be built."""
    try:
        with convert_to_bad_input():
            _evaluators[:] = [factory()]
    except BadInput as error:
        return Failure("BadInput", to_printable(describe(error)), is_input=True)
    except (Exception, SystemExit) as error:
        name = type(error).__name__
        return Failure(name, to_printable(f"{name}: {error}"))
    return None


def call_evaluator(function: Callable[..., Any], *args: Any) -> Any:
    """In a worker: what an importable function returns for its evaluator, or the `Failure` that it ends in."""
    try:
        return function(*_evaluators, *args)
    except (Exception, SystemExit) as error:
        return Failure(type(error).__name__, to_printable(describe_problem(error)))


def evaluate(evaluator: Evaluator, proposal: Proposal) -> Evaluation:
    """The checked evaluation of a proposal."""
    evaluation = evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)
    return check_evaluation(evaluation, evaluator.space, proposal.plan)


def identify(evaluator: Evaluator) -> tuple[Any, ...]:
    """What a study asks of its evaluator before it evaluates anything: space, fidelities and description."""
    return evaluator.space, tuple(evaluator.fidelities), evaluator.describe()


def check_reply(reply: Any) -> Any:
    """A reply that is no failure; else raises a subclass of EvaluationFailed with the name and message of the worker's
    exception, so that a log has the same reason wherever the evaluation ran."""
    if isinstance(reply, Failure):
        raise type(reply.name, (EvaluationFailed,), {})(reply.message)
    return reply
