"""Where evaluations run: one small interface in the manner of `concurrent.futures`."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from qra_search.evaluation import Evaluation, Evaluator
from qra_search.trials import Proposal


class Executor(Protocol):
    """Runs evaluations, `slots` of them at a time."""

    slots: int

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        """Start an evaluation. Whatever goes wrong in it ends the future with that exception."""
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
        except Exception as error:  # the study records it as the reason of a failed trial
            future.set_exception(error)
        else:
            future.set_result(evaluation)
        return future

    def shutdown(self) -> None:
        return None
