"""The small interface between a study and its workers, and the executor that has none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from qra_search.errors import BadInput
from qra_search.evaluator import Evaluator
from qra_search.schemas import Evaluation, Proposal


class WorkerDied(RuntimeError):
    """Two workers ended during the same evaluation: the trial has failed."""


class WorkerUnusable(RuntimeError):
    """No worker can evaluate anything: the study stops, and the trial stays open until it is resumed."""


class InputUnusable(WorkerUnusable, BadInput):
    """No worker can build the evaluator, because of what the user gave."""


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
            evaluation = self.evaluator.evaluate(
                proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed
            )
        except (Exception, SystemExit) as error:  # the study records it as the reason of a failed trial
            future.set_exception(error)
        else:
            future.set_result(evaluation)
        return future
