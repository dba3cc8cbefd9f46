"""The small interface between a study and its workers, and the executor that has none."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol

from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import Evaluation, Evaluator
from qra_search.log.trial import Proposal


class WorkerDied(RuntimeError):
    """Two workers ended during the same evaluation: the trial has failed."""


class WorkerUnusable(RuntimeError):
    """No worker can evaluate anything: the study stops, and the trial stays open until it is resumed."""


class InputUnusable(WorkerUnusable, BadInput):
    """No worker can build the evaluator, because of what the user gave."""


class Executor(Protocol):
    """Runs evaluations, `slots` of them at a time.

    An executor may also have `wait(futures)`, which returns those that have ended as soon as one has: one that
    simulates workers ends them in virtual time.
    """

    slots: int

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        """Start an evaluation; if it fails, the future ends with its exception."""
        ...

    def shutdown(self) -> None:
        """Free the workers; running evaluations are given up."""
        ...


class InProcessExecutor:
    """Evaluates at once, in this process."""

    slots = 1

    def __init__(self, evaluator: Evaluator):
        self.evaluator = evaluator

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        future: Future[Evaluation] = Future()
        try:
            evaluation = self.evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)
        except (Exception, SystemExit) as error:  # the study records it as the reason of a failed trial
            future.set_exception(error)
        else:
            future.set_result(evaluation)
        return future

    def shutdown(self) -> None:
        return None


def first_ended(executor: Executor, futures: Iterable[Future[Evaluation]]) -> Iterable[Future[Evaluation]]:
    """Wait until one of the futures has ended, and return all that have."""
    own = getattr(executor, "wait", None)
    return own(futures) if own is not None else wait(futures, return_when=FIRST_COMPLETED).done
