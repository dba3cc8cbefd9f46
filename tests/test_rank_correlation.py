"""Rank correlations are Spearman's, their intervals cover, and the plans compared take about the same bytes."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import AdditiveEvaluator, make_space
from scipy import stats

from qra_search.surrogates.prior_table import prior_losses

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "evaluator"))
from rank_correlation import LEAST_SHARE, correlation, plans_of_like_size, table  # noqa: E402


def test_the_correlation_is_spearmans_with_ties_and_failures_left_out():
    rng = np.random.default_rng(0)
    full, cheap = rng.normal(size=30).round(1), rng.normal(size=30).round(1)
    cheap[3] = np.nan
    kept = np.isfinite(cheap)
    found = correlation("half", full, cheap, 0.5)
    assert found.rho == pytest.approx(stats.spearmanr(full[kept], cheap[kept]).statistic)
    assert found.low < found.rho < found.high and found.plans == 29 and found.cost == 0.5


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    truth = 6 / math.pi * math.asin(0.7 / 2)  # Spearman's of a Gaussian pair with correlation 0.7
    for _ in range(60):
        pair = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=40).T
        found = correlation("", pair[0], pair[1], 1.0)
        covered += found.low <= truth <= found.high
    assert covered >= 50


def test_too_few_plans_give_no_correlation():
    assert math.isnan(correlation("", np.array([1.0, 2.0]), np.array([1.0, 2.0]), 1.0).rho)


def test_plans_of_like_size_are_distinct_within_the_budget_and_near_it():
    space = make_space(groups=20, fixed_bytes=10**6)
    budget = space.memory_bytes(space.uniform(3, 8))
    plans = plans_of_like_size(space, budget, 12, seed=3)
    sizes = [space.memory_bytes(p) - space.fixed_bytes for p in plans]
    assert len({p.key for p in plans}) == 12 and plans == plans_of_like_size(space, budget, 12, seed=3)
    assert all(LEAST_SHARE * (budget - space.fixed_bytes) <= s <= budget - space.fixed_bytes for s in sizes)


def test_more_plans_than_there_are_is_refused():
    space = make_space(groups=1, bits=(2, 3), ranks=(4,))
    with pytest.raises(ValueError, match=r"only [12] of 5 distinct plans"):
        plans_of_like_size(space, space.memory.maximum, 5)


def test_the_table_leaves_out_plans_that_failed_at_either_fidelity():
    full, cheap = [3.0, 1.0, 2.0, None, 4.0], [-3.0, -1.0, -2.0, 5.0, None]
    records = [
        {"what": "score", "plan": f"plan {n}", "fidelity": fidelity, "seed": 0, "loss": loss, "cost": fidelity}
        for fidelity, losses in ((0.25, cheap), (1.0, full))
        for n, loss in enumerate(losses)
    ]
    sensitivities, low = table(records)
    assert (sensitivities.name, sensitivities.plans) == ("the prior alone", 0)
    assert (low.name, low.plans, low.cost) == ("fidelity 0.25", 3, 0.25) and low.rho == pytest.approx(-1)


def test_an_exact_prior_without_interaction_ranks_plans_of_one_rank_as_their_losses_do():
    evaluator = AdditiveEvaluator(make_space(ranks=(8,)))
    plans = plans_of_like_size(evaluator.space, evaluator.space.memory.maximum // 2, 12)
    full = np.array([evaluator.true_loss(p) for p in plans])
    assert correlation(
        "", full, prior_losses(evaluator.space, evaluator.sensitivities(), plans), 0.0
    ).rho == pytest.approx(1)
