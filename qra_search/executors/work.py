"""What a worker does for its study: builds the evaluator once, then evaluates, describes or measures with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qra_search.errors import BadInput, bad_input, describe
from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, Evaluator, check_evaluation
from qra_search.executors.base import InputUnusable, WorkerUnusable
from qra_search.log.trial import Proposal, to_printable

Factory = Callable[[], Evaluator]
"""Builds the evaluator in the worker; picklable: a module-level function, a `functools.partial` of one, a class."""
DESCRIBING = ("describe", "sensitivities_charge", "evaluation_seconds", "row_counts")
"""Methods of an evaluator that a study asks for once."""


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
            with bad_input():
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
            return Failure(type(error).__name__, to_printable(str(error)))


def evaluate(evaluator: Evaluator, proposal: Proposal) -> Evaluation:
    """The checked evaluation of a proposal, in plain numbers."""
    evaluation = evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)
    return check_evaluation(evaluation, evaluator.space, proposal.plan)


def identify(evaluator: Evaluator) -> dict[str, Any]:
    """What a study asks of its evaluator before it evaluates anything."""
    described = {name: getattr(evaluator, name)() for name in DESCRIBING}
    return {"space": evaluator.space, "fidelities": tuple(evaluator.fidelities), **described}


def unwrap(reply: Any) -> Any:
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
