"""The plans of the rows of `finetunes.py`, among them controls in the same bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, read_lines
from benchmarks.study.finetune_settings import Row
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.allocate.solve import solve
from qra_search.app.baselines import shuffle_plan
from qra_search.app.search import search
from qra_search.schemas import Plan
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import SearchSpace


def choose_plan(evaluator: QuantizedLoRAEvaluator, row: Row, log: Path, **options: Any) -> Plan:
    """The plan of a row that is tuned by this package.

    Args:
        log: of a search, which is resumed from it.
        options: of a search.

    Raises:
        SystemExit: no plan of the space fits.
    """
    space = evaluator.space
    if row.kind == "peer":
        return read_peer_plan(space, row)
    if row.budget is None:
        return uniform_plan(space, UNQUANTIZED_BITS if row.kind == "lora" else row.bits, row.rank or 0)
    budget = resolve_budgets(space, row.budget)[0]
    if row.kind == "first-wider":
        plan = widen_first_layers(space, budget, row.rank or 0)
    elif row.kind == "search":
        plan = search(evaluator, memory_budget=budget, log=log, progress=True, **options).choose_plan()
    else:
        plan = solve(space, evaluator.sensitivities(), budget).plan
    if plan is None:
        raise SystemExit(f"{row.name}: no plan fits")
    return plan if row.shuffle is None else shuffle_plan(space, plan, row.shuffle)


def uniform_plan(space: SearchSpace, bits: Any, rank: int) -> Plan:
    """The plan of one width and rank, both of the space."""
    plan = space.uniform(bits, rank)
    assert plan is not None
    return plan


def read_peer_plan(space: SearchSpace, row: Row) -> Plan:
    """The plan with the bits that another tool chose for every linear."""
    lines = read_lines(RESULTS / "study" / "peer_plans.jsonl")
    (chosen,) = (line["bits"] for line in lines if (line["tool"], line["target"]) == (row.tool, row.bits))
    return Plan(tuple(chosen[group.linears[0].name] for group in space.groups), (row.rank or 0,) * len(space))


def widen_first_layers(space: SearchSpace, budget: int, rank: int) -> Plan | None:
    """The widest uniform plan within a budget, with the next wider bits in as many of the first groups as fit."""
    uniform = [plan for bits in space.bits if (plan := space.uniform(bits, rank)) is not None]
    best = None
    for narrow, wide in pairwise(uniform):
        for count in range(len(space) + 1):
            plan = Plan(wide.bits[:count] + narrow.bits[count:], narrow.ranks)
            if space.memory_bytes(plan) <= budget:
                best = plan
    return best
