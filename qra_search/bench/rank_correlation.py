"""How far cheap scores rank plans as full evaluations do: rank correlations with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, Evaluator
from qra_search.evaluation.prior import Prior
from qra_search.space.sampling import leaning_plan
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.evolution.edits import Levels
from qra_search.surrogates.prior_table import prior_table

RESAMPLES = 2000
LEAST_SHARE = 0.85
"""Plans are drawn to take at least this share of the budget: over all sizes any score would rank well."""
ATTEMPTS = 1000

Scores = Mapping[float, np.ndarray]


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of a cheap score with the full loss over `plans` plans, and its 95% interval.

    Attributes:
        cost: full evaluations that one score costs.
    """

    name: str
    rho: float
    low: float
    high: float
    plans: int
    cost: float


def plans_of_like_size(space: SearchSpace, budget: int, count: int, seed: int = 0) -> list[Plan]:
    """`count` distinct random plans of 85 to 100% of a budget.

    They lean to bits or to rank, so they differ in how they spend the bytes.

    Raises:
        BudgetTooSmall: no plan fits.
        ValueError: too few plans of that size turned up.
    """
    levels, rng = Levels(space), np.random.default_rng([seed, 0xF1DE])
    found: dict[str, Plan] = {}
    for _ in range(ATTEMPTS * count):
        plan = levels.decode(levels.repair(levels.encode([leaning_plan(space, rng)])[0], budget, rng))
        if space.memory_bytes(plan) - space.fixed_bytes >= LEAST_SHARE * (budget - space.fixed_bytes):
            found.setdefault(plan.key, plan)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"only {len(found)} of {count} distinct plans of about {budget} bytes turned up: ask for fewer")


def score(
    evaluator: Evaluator,
    plans: Sequence[Plan],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Scores, Mapping[float, float]]:
    """Losses (N,) of plans at every fidelity of an evaluator, nan if one failed, and the mean cost of each.

    Args:
        progress: called with evaluations done, and of how many.
    """
    losses = {fidelity: np.full(len(plans), np.nan) for fidelity in evaluator.fidelities}
    costs: dict[float, list[float]] = {fidelity: [] for fidelity in evaluator.fidelities}
    total = len(plans) * len(losses)
    for n, plan in enumerate(plans):
        for k, fidelity in enumerate(evaluator.fidelities):
            try:
                done: Evaluation = evaluator.evaluate(plan, fidelity=fidelity, seed=seed)
            except EvaluationFailed:
                continue
            finally:
                if progress is not None:
                    progress(n * len(losses) + k + 1, total)
            losses[fidelity][n] = done.loss
            costs[fidelity].append(done.charged)
    return losses, {f: float(np.mean(c)) if c else float("nan") for f, c in costs.items()}


def correlation(name: str, full: np.ndarray, cheap: np.ndarray, cost: float, seed: int = 0) -> RankCorrelation:
    """Spearman's correlation of two (N,) with its bootstrap interval over plans; nan if fewer than three count."""
    usable = np.isfinite(full) & np.isfinite(cheap)
    full, cheap = full[usable], cheap[usable]
    n = len(full)
    if n < 3:
        return RankCorrelation(name, float("nan"), float("nan"), float("nan"), n, cost)
    rows = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    resampled = _pearson(stats.rankdata(full[rows], axis=1), stats.rankdata(cheap[rows], axis=1))
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    rho = float(_pearson(stats.rankdata(full)[None], stats.rankdata(cheap)[None])[0])
    return RankCorrelation(name, rho, float(low), float(high), n, cost)


def by_prior(space: SearchSpace, prior: Prior, plans: Sequence[Plan]) -> np.ndarray:
    """Loss (N,) of plans by the prior alone, up to a constant: its table, added up over groups."""
    table = prior_table(space, prior)
    b, r = space.encode_many(plans)
    return table[np.arange(len(space)), b, r].sum(1)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation (K,) of the rows of two (K, N); nan if one is constant."""
    a = a - a.mean(1, keepdims=True)
    b = b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
