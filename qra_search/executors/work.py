"""What a worker does for its study: requests and replies in plain data, so that no worker's objects are unpickled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from qra_search.errors import BadInput, bad_input, describe
from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, Evaluator, check_evaluation
from qra_search.executors.base import InputUnusable, WorkerUnusable
from qra_search.log.trial import Proposal, plain, printable
from qra_search.space.serialization import space_to_dict
from qra_search.space.space import Plan

Factory = Callable[[], Evaluator]
"""Builds the evaluator in a worker; picklable: a module-level function, a `functools.partial` of one, a class."""
Request = dict[str, Any]
Reply = dict[str, Any]

IDENTITY: Request = {"do": "identity"}
SENSITIVITIES: Request = {"do": "sensitivities"}


def evaluation_request(proposal: Proposal) -> Request:
    """Asks for one evaluation."""
    return {"do": "evaluate", **proposal.plan.to_dict(), "fidelity": proposal.fidelity, "seed": proposal.seed}


def handle(evaluator: Evaluator, request: Request) -> Reply:
    """Serve one request: `{"ok": value}`, `{"evaluation": fields}`, or `{"error": [type, message]}` whatever it did."""
    try:
        return _SERVE[request["do"]](evaluator, request)
    except (Exception, SystemExit) as error:
        return {"error": [type(error).__name__, printable(str(error))]}


def unpack(reply: Reply) -> Any:
    """The value of a reply.

    Raises:
        WorkerUnusable: the worker could not build its evaluator; InputUnusable if the user can mend that.
        EvaluationFailed: of the type and with the message that the worker saw, so that a log gives the same
            reason wherever the evaluation ran.
    """
    if "unusable" in reply:
        kind = InputUnusable if reply["mendable"] else WorkerUnusable
        raise kind(f"the evaluator cannot be built: {reply['unusable']}")
    if "error" in reply:
        name, message = reply["error"]
        raise type(str(name), (EvaluationFailed,), {})(message)
    return Evaluation(**reply["evaluation"]) if "evaluation" in reply else reply["ok"]


def build(factory: Factory) -> tuple[Evaluator | None, Reply]:
    """In a worker: its evaluator, and the reply that says whether there is one."""
    try:
        with bad_input():
            return factory(), {"ok": None}
    except BadInput as error:
        return None, {"unusable": printable(describe(error)), "mendable": True}
    except (Exception, SystemExit) as error:
        return None, {"unusable": f"{type(error).__name__}: {error}", "mendable": False}


def _evaluate(evaluator: Evaluator, request: Request) -> Reply:
    plan = Plan.from_dict(request)
    evaluation = evaluator.evaluate(plan, fidelity=request["fidelity"], seed=request["seed"])
    return {"evaluation": asdict(plain(check_evaluation(evaluation, evaluator.space, plan)))}


def _identity(evaluator: Evaluator, request: Request) -> Reply:
    told = {
        "space": space_to_dict(evaluator.space), "fidelities": list(evaluator.fidelities),
        "description": evaluator.describe(), "charge": evaluator.sensitivities_charge(),
        "seconds": evaluator.evaluation_seconds(),
        "rows": {split: asdict(count) for split, count in evaluator.row_counts().items()},
    }  # fmt: skip
    return {"ok": told}


def _sensitivities(evaluator: Evaluator, request: Request) -> Reply:
    sensitivities = evaluator.sensitivities()
    return {"ok": None if sensitivities is None else sensitivities.to_dict()}


_SERVE = {"evaluate": _evaluate, "identity": _identity, "sensitivities": _sensitivities}
