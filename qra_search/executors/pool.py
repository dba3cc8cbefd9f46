"""Workers: what each does for its study, and the executor that starts them when needed and replaces those that die."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import methodcaller
from queue import LifoQueue
from typing import Any, TypeVar

from qra_search.errors import BadInput, EvaluationFailed, convert_to_bad_input, describe, describe_problem
from qra_search.evaluation.evaluator import Evaluator, RowCount, check_evaluation
from qra_search.executors.base import Executor, InputUnusable, WorkerDied, WorkerUnusable
from qra_search.log.journal import to_printable
from qra_search.schemas import Evaluation, Plan, Proposal, Sensitivities

ATTEMPTS = 2
"""Workers that may die on one request before it fails: the first death may not have been the plan's fault."""
Factory = Callable[[], Evaluator]
"""Builds the evaluator in the worker; picklable: a module-level function, a `functools.partial` of one, a class."""
DESCRIBING = ("describe", "sensitivity_cost", "evaluation_seconds", "row_counts")
"""Methods of an evaluator that a study asks for once."""


class Worker(ABC):
    """A process or an actor with its own `WorkerEvaluator`."""

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
        return self.call(evaluate, proposal)

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
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
                    return check_reply(worker.request("call", function, *args))
                except WorkerDied as error:
                    died = error
                    self._drop(slot)
            raise WorkerDied(f"{died}, as did its replacement")
        finally:
            self._free.put(slot)

    def _start(self, slot: int) -> Worker:
        for _ in range(ATTEMPTS):
            try:
                with self._lock:
                    self._check_open()
                    worker = self._workers[slot] = self.start_worker(slot)
                check_reply(worker.request("build", self.factory))
                return worker
            except WorkerDied as error:
                died = error
                self._drop(slot)
            except WorkerUnusable:
                self._drop(slot)
                raise
            except Exception as error:  # it cannot be started, or the factory cannot be pickled
                self._drop(slot)
                raise WorkerUnusable(f"no worker can be started ({type(error).__name__}: {error})") from error
        raise WorkerUnusable(f"{died} while building the evaluator: try fewer workers")

    def _drop(self, slot: int) -> None:
        if (worker := self._workers.pop(slot, None)) is not None:
            worker.kill()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise WorkerUnusable("the executor was shut down")


class RemoteEvaluator(Evaluator):
    """Stands for the evaluators of an executor's workers, so that the study's own process never loads the model; one
    worker is started to identify them."""

    def __init__(self, executor: WorkerExecutor):
        self._executor = executor
        self._identity: dict[str, Any] = executor.call(identify).result()
        self.space, self.fidelities = self._identity["space"], self._identity["fidelities"]

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return self._executor.submit(Proposal(plan, fidelity, seed)).result()

    def sensitivities(self) -> Sensitivities | None:
        sensitivities: Sensitivities | None = self._executor.call(methodcaller("sensitivities")).result()
        return sensitivities

    def describe(self) -> dict[str, Any]:
        return dict(self._identity["describe"])

    def sensitivity_cost(self) -> float | None:
        charge: float | None = self._identity["sensitivity_cost"]
        return charge

    def evaluation_seconds(self) -> float:
        return float(self._identity["evaluation_seconds"])

    def row_counts(self) -> Mapping[str, RowCount]:
        return dict(self._identity["row_counts"])


@dataclass(frozen=True)
class Failure:
    """An exception as text, since its class may not be importable where the study runs.

    Attributes:
        name: of its class.
        error: class to raise in its place, if the evaluator could not be built.
    """

    name: str
    message: str
    error: type[WorkerUnusable] | None = None


class WorkerEvaluator:
    """The evaluator of a worker, once it is built."""

    evaluator: Evaluator | None = None

    def build(self, factory: Factory) -> Failure | None:
        """Build the evaluator; returns the failure, if it cannot be built."""
        try:
            with convert_to_bad_input():
                self.evaluator = factory()
        except BadInput as error:
            return Failure("BadInput", to_printable(describe(error)), InputUnusable)
        except (Exception, SystemExit) as error:
            name = type(error).__name__
            return Failure(name, to_printable(f"{name}: {error}"), WorkerUnusable)
        return None

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What an importable function returns for the evaluator, or the `Failure` that it ends in."""
        try:
            return function(self.evaluator, *args)
        except (Exception, SystemExit) as error:
            return Failure(type(error).__name__, to_printable(describe_problem(error)))


def evaluate(evaluator: Evaluator, proposal: Proposal) -> Evaluation:
    """The checked evaluation of a proposal, in plain numbers."""
    evaluation = evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)
    return check_evaluation(evaluation, evaluator.space, proposal.plan)


def identify(evaluator: Evaluator) -> dict[str, Any]:
    """What a study asks of its evaluator before it evaluates anything."""
    described = {name: getattr(evaluator, name)() for name in DESCRIBING}
    return {"space": evaluator.space, "fidelities": tuple(evaluator.fidelities), **described}


def check_reply(reply: Any) -> Any:
    """A reply that is no failure.

    Raises:
        WorkerUnusable: the evaluator could not be built; `InputUnusable` if the user's input is the reason.
        EvaluationFailed: a subclass with the name and message of the worker's exception, so that a log has the same
            reason wherever the evaluation ran.
    """
    if not isinstance(reply, Failure):
        return reply
    if reply.error is not None:
        raise reply.error(f"the evaluator cannot be built: {reply.message}")
    raise type(reply.name, (EvaluationFailed,), {})(reply.message)
