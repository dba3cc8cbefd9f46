"""What is known of a search before it begins: the space, the extremes of memory, and what it will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from qra_search.config import RunConfig
from qra_search.errors import bad_input
from qra_search.evaluation.evaluator import Evaluator
from qra_search.space.budgets import resolve
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.study.listener import Listener
from qra_search.study.study import uniform_design
from qra_search.trackers import Tracker
from qra_search.workflow.evaluator import build_evaluator
from qra_search.workflow.settings import check_task

MUCH = 0.25
"""Share of the budget from which on it is said that embeddings take it."""


def foretold(
    config: RunConfig, listener: Listener, *, track: Sequence[str] = (), begun: bool = False
) -> dict[str, Any]:
    """Build the evaluator, spend nothing, and say what a search would do; see `dry_run`.

    Args:
        track: trackers, which have to be installed; none of them is begun.
        begun: the search has begun, and so has a task.
    """
    with bad_input():
        for spec in track:
            Tracker(spec, "run")
        if not begun:
            check_task(config)
    with listener:
        built = build_evaluator(config, listener.progress, weights=False)
    with closing(built) as evaluator:
        return dry_run(evaluator, config)


def dry_run(evaluator: Evaluator, config: RunConfig) -> dict[str, Any]:
    """Facts of a search that is yet to begin, as plain data.

    Of an evaluator that does not estimate its cost, time and peak memory are unknown until the first evaluation.

    Raises:
        BadInput: a budget that no plan fits.
    """
    space = evaluator.space
    with bad_input():
        budgets = resolve(space, list(config.search.memory) or None)
    estimate = dict(evaluator.estimate())
    if "evaluation_seconds" in estimate:
        sensitivities, setup = estimate.get("sensitivities_seconds", 0.0), estimate.get("setup_seconds", 0.0)
        told = evaluator.sensitivities_charge()
        if told is not None:
            estimate["sensitivities_charge"] = told
        estimate["total_seconds"] = setup + sensitivities + estimate["evaluation_seconds"] * config.search.evaluations
    return {
        "config": config.model_dump(mode="json"),
        "groups": len(space),
        "kinds": dict(Counter(group.kind or "group" for group in space.groups)),
        "linears": sum(len(group.linears) for group in space.groups),
        "weights": space.weights,
        "fixed_bytes": space.fixed_bytes,
        "smallest_bytes": space.memory.minimum,
        "largest_bytes": space.memory.maximum,
        "budgets": list(budgets),
        "first": [
            {"bits": plan.bits[0], "rank": plan.ranks[0], "memory_bytes": space.memory_bytes(plan)}
            for plan in uniform_design(space, budgets)
        ],
        "rows": {name: asdict(count) for name, count in evaluator.row_counts().items()},
        "estimate": estimate,
        "example": [{"text": text, "learnt": learnt} for text, learnt in evaluator.rendered() or ()],
    }


def embeddings_hint(config: RunConfig, fixed: int, budgets: Sequence[int]) -> str | None:
    """What to say if much of the memory is in what no plan changes, and halving that is one setting away.

    Args:
        fixed: bytes of all that is not searched.
        budgets: bytes that plans may take.
    """
    offered = config.evaluator == type(config).model_fields["evaluator"].default
    searched = config.quantization.embeddings != (UNQUANTIZED_BITS,)
    if not offered or searched or not budgets or fixed < MUCH * min(budgets):
        return None
    return f"{fixed / min(budgets):.0%} of the budget, mostly embeddings: quantization.embeddings=8 halves them"
