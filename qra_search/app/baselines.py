"""What is tuned beside a plan: uniform plans, the plan shuffled, and the rungs of a ladder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from qra_search.app.compare import (
    Comparison,
    count_choices_by_shape,
    find_best,
    group_by_shape,
    is_as_good,
    list_deployable,
)
from qra_search.errors import BadInput
from qra_search.schemas import Plan
from qra_search.space.space import SearchSpace
from qra_search.study.result import SearchResult

LADDER_BITS, LADDER_RANK = (1, 1.5, 2, 3, 4), 8
"""Widths of the uniform plans of a ladder, and their rank, if there is none nearer below."""
Against = Literal["best", "all", "shuffled", "none", "ladder"]


def select_baselines(
    space: SearchSpace, plan: Plan, budget_bytes: int, against: Against, result: SearchResult
) -> list[Plan]:
    """Plans of at most `budget_bytes` to tune beside a plan, cheapest first; empty if none fits.

    Args:
        against: `best`: of the uniform plans that fit, by the search's estimate; `all` of them, and the plan shuffled;
            the plan `shuffled` alone; `none`. A `ladder` is that of `list_rungs`.
        result: without evaluated uniform plans and sensitivities the largest that fits is taken for the best.

    Raises:
        BadInput: the plan cannot be shuffled.
    """
    if against == "none":
        return []
    if against == "shuffled":
        return [shuffle_plan(space, plan)]
    fitting = space.uniform_plans(budget_bytes)
    if against == "all" and fitting and can_shuffle(space, plan):
        return [*fitting, shuffle_plan(space, plan)]
    if against == "all" or not fitting:
        return fitting
    if (evaluated := result.find_best_uniform(budget_bytes)) is not None:
        return [evaluated.plan]
    allocation = result.allocation(budget_bytes)
    best = None if allocation is None else allocation.best_uniform
    return [fitting[-1] if best is None else best.plan]


def list_rungs(space: SearchSpace, plan: Plan, result: SearchResult, limit: int | None = None) -> list[Plan]:
    """The ladder of a space: uniform plans at `LADDER_BITS` and one rank, the allocated plans between them and a plan
    of one's own, cheapest first; of at most `limit` bytes."""
    ranks = [rank for rank in space.uniform_ranks if 0 < rank <= LADDER_RANK] or [
        max(space.uniform_ranks, default=0)
    ]
    uniform = [
        found
        for (level, rank), found in space.uniform_by_choice().items()
        if space.level(level).width in LADDER_BITS and rank == ranks[-1]
    ]
    sizes = sorted(map(space.memory_bytes, uniform))
    middles = (math.isqrt(low * high) for low, high in itertools.pairwise(sizes))
    between = [
        a.plan for middle in middles if (a := result.allocation(middle)) is not None and any(a.plan.ranks)
    ]
    rungs = {plan, *(p for p in (*uniform, *between) if limit is None or space.memory_bytes(p) <= limit)}
    return sorted(rungs, key=lambda p: (space.memory_bytes(p), p.key))


def choose_next_rung(rungs: Sequence[Plan], comparison: Comparison) -> Plan | None:
    """The rung of a ladder, cheapest first, to tune next: the last, then the middle of those of which one may be the
    smallest that is as good as the best. None if that is known: the curve is flat above it."""
    known = {t.plan: t for t in list_deployable(comparison.tunings)}
    places = [i for i, rung in enumerate(rungs) if rung in known]
    if len(rungs) - 1 not in places:
        return rungs[-1]
    metric = comparison.judging_metric
    best = find_best([known[rungs[i]] for i in places], metric)
    high = next(i for i in places if is_as_good(known[rungs[i]], best, metric, comparison.tolerance))
    low = max((i for i in places if i < high), default=-1)
    return None if high - low == 1 else rungs[(low + high) // 2]


def shuffle_plan(space: SearchSpace, plan: Plan, seed: int = 0) -> Plan:
    """The plan's own widths and ranks, shuffled over groups of the same shape: the same bytes, chosen by chance.

    Raises BadInput if groups of the same shape have the same width and rank throughout.
    """
    rng, order = np.random.default_rng(seed), np.arange(len(space))
    for alike in group_by_shape(space):
        order[alike] = rng.permutation(alike)
    if not can_shuffle(space, plan):
        raise BadInput(
            "the plan has no shuffled counterpart, as all its linears of one shape have the same width and rank: leave "
            "out --against shuffled"
        )
    shuffled = Plan(tuple(plan.bits[i] for i in order), tuple(plan.ranks[i] for i in order))
    return shuffled if shuffled != plan else shuffle_plan(space, plan, seed + 1)


def can_shuffle(space: SearchSpace, plan: Plan) -> bool:
    """Whether groups of the same shape have different widths or ranks."""
    return any(len(choices) > 1 for choices in count_choices_by_shape(space, plan))
