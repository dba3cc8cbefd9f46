"""What a plan is compared with: uniform plans that fit, and the plan itself shuffled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from qra_search.errors import BadInput
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.result import SearchResult

Against = Literal["best", "all", "shuffled", "none"]


def select_baselines(
    space: SearchSpace, plan: Plan, budget_bytes: int, against: Against, result: SearchResult
) -> list[Plan]:
    """Plans of at most `budget_bytes` to tune beside a plan, cheapest first; empty if none fits.

    Args:
        against: `best`: of the uniform plans that fit, by the search's estimate; `all` of them, and the plan shuffled;
            the plan `shuffled` alone; `none`.
        result: without evaluated uniform plans and sensitivities the largest that fits is taken for the best.

    Raises:
        BadInput: the plan cannot be shuffled.
    """
    if against == "none":
        return []
    if against == "shuffled":
        return [shuffle_plan(space, plan)]
    fitting = space.uniform_plans(budget_bytes)
    if against == "all" or not fitting:
        return [*fitting, *([shuffle_plan(space, plan)] if fitting and can_shuffle(space, plan) else [])]
    if (evaluated := result.find_best_uniform(budget_bytes)) is not None:
        return [evaluated.plan]
    allocation = result.allocation(budget_bytes)
    best = None if allocation is None else allocation.best_uniform
    return [fitting[-1] if best is None else best.plan]


def shuffle_plan(space: SearchSpace, plan: Plan, seed: int = 0) -> Plan:
    """The plan's own widths and ranks, shuffled over groups of the same shape: the same bytes, chosen by chance.

    Raises BadInput if groups of the same shape have the same width and rank throughout.
    """
    rng, order = np.random.default_rng(seed), np.arange(len(space))
    for alike in _group_by_shape(space):
        order[alike] = rng.permutation(alike)
    if not can_shuffle(space, plan):
        raise BadInput(
            "the plan has one width and rank for all linears of the same shape: it cannot be shuffled"
        )
    shuffled = Plan(tuple(plan.bits[i] for i in order), tuple(plan.ranks[i] for i in order))
    return shuffled if shuffled != plan else shuffle_plan(space, plan, seed + 1)


def can_shuffle(space: SearchSpace, plan: Plan) -> bool:
    """Whether groups of the same shape have different widths or ranks."""
    return any(len(choices) > 1 for choices in _group_choices(space, plan))


def is_shuffled(space: SearchSpace, plan: Plan, other: Plan) -> bool:
    """Whether another plan has this plan's widths and ranks on other groups of the same shape."""
    return plan != other and _group_choices(space, plan) == _group_choices(space, other)


def _group_by_shape(space: SearchSpace) -> list[Sequence[int]]:
    """Indices of the groups, together where shapes and allowed choices are the same."""
    alike: dict[object, list[int]] = {}
    for i, group in enumerate(space.groups):
        shapes = tuple(sorted((m.out_features, m.in_features) for m in group.linears))
        alike.setdefault((shapes, group.bits, group.ranks, group.is_embedding), []).append(i)
    return list(alike.values())


def _group_choices(space: SearchSpace, plan: Plan) -> list[Counter[tuple[object, int]]]:
    return [Counter((plan.bits[i], plan.ranks[i]) for i in alike) for alike in _group_by_shape(space)]
