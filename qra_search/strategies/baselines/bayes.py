"""Bayesian optimization: a Gaussian process of the loss, exact bytes, and BoTorch's discrete local search."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from qra_search.allocate.solve import build_additive_table, compute_table_losses, solve, solve_table
from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal
from qra_search.space.steps import AdjacentSteps
from qra_search.strategies import Estimates, Strategy, average_losses, average_replicates, find_non_dominated
from qra_search.strategies.simple import propose_new
from qra_search.surrogates.acquisition import Score, log_expected_improvement, rank_codes, search_locally
from qra_search.surrogates.gp import PlanGP, encode_inputs, fit_plan_gp, scale_by_error

INITIAL_EVALUATIONS = 8
RESTARTS = 4
"""Points that the local search starts from."""
FRONT_PARENTS = 6
RANDOM_STARTS = 8


class BayesStrategy(Strategy):
    """Bayesian optimization by BoTorch: a Gaussian process and the expected improvement.

    The mean of the `SingleTaskGP` is affine in the additive loss. Expected improvements are summed over the budgets.

    Pending trials, and the proposals of one call, are fantasized at their posterior mean.

    The first `INITIAL_EVALUATIONS` plans are additive optima, then random ones.
    """

    name = "bayes"
    searches_extra = True

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        model = fit_to_trials(state) if n > 0 and len(state.seen) >= INITIAL_EVALUATIONS else None
        if model is None:
            return self._propose_initial(state, n)
        proposals: list[Proposal] = []
        seen = [t.plan for t in state.trials]
        while len(proposals) < n:
            score = score_improvement(state, model)
            known = state.space.encode_many(seen)
            starts = _list_starts(state, model, state.rng(len(proposals)))
            starts = rank_codes(state.space, score, starts, known, state.largest_budget)[:RESTARTS]
            if not len(starts):
                break
            code = search_locally(score, starts, AdjacentSteps(state.space).allowed, known)
            mean = model.predict(code[None])[0].item()
            seen.append(state.space.decode(code))
            proposals.append(Proposal(seen[-1], 1.0, state.seed, "expected improvement", mean))
            model = model.fantasize(code[None])
        return proposals or propose_new(state, n, lambda _, rng: (_sample_plan(state, rng), "random"))

    def estimate(self, state: StudyState) -> Estimates:
        """Posterior of the model at the evaluated plans; what was observed of those too bad to be modelled."""
        model = fit_to_trials(state)
        observed = average_replicates(state.full)
        if model is None:
            return observed
        mean, std = model.predict(state.space.encode_many(observed.plans))
        modelled = observed.mean <= model.ceiling
        return Estimates(
            observed.plans, np.where(modelled, mean, observed.mean), np.where(modelled, std, observed.std)
        )

    def _propose_initial(self, state: StudyState, n: int) -> list[Proposal]:
        optima = [solve(state.space, state.sensitivities, budget).plan for budget in reversed(state.budgets)]
        new = [plan for plan in dict.fromkeys(optima) if plan not in state.seen]

        def draw(offset: int, rng: np.random.Generator) -> tuple[Plan, str]:
            return (new[offset], "additive") if offset < len(new) else (_sample_plan(state, rng), "random")

        return propose_new(state, n, draw)


def fit_to_trials(state: StudyState) -> PlanGP | None:
    """The model of the trials at full fidelity; None if they are too few."""
    values = scale_by_error(state.space)
    table = build_additive_table(state.space, state.sensitivities)
    return fit_plan_gp(
        state.space,
        average_losses(state.full),
        [t.plan for t in state.pending],
        lambda codes: np.column_stack([encode_inputs(values, codes), compute_table_losses(table, codes)]),
        kernel="rbf",
        seed=state.seed,
    )


def score_improvement(state: StudyState, model: PlanGP) -> Score:
    """The log of the sum over budgets of the expected improvement on the best posterior mean within each."""
    mean = model.predict(model.codes)[0]
    sizes = state.memory.bytes(model.codes)
    best = np.array([mean[sizes <= budget].min(initial=mean.max()) for budget in state.budgets])

    def score(codes: np.ndarray) -> np.ndarray:
        fits = state.memory.bytes(codes)[:, None] <= np.asarray(state.budgets)
        expected, std = model.predict(codes)
        gains = log_expected_improvement(expected[:, None], std[:, None], best)
        return np.asarray(logsumexp(np.where(fits, gains, -np.inf), axis=1))

    return score


def _list_starts(state: StudyState, model: PlanGP, rng: np.random.Generator) -> np.ndarray:
    """int (M, 2, G): where the local search may begin: near the front, additive and linearized optima, random plans."""
    space = state.space
    steps = AdjacentSteps(state.space)
    mean = model.predict(model.codes)[0]
    sizes = space.memory.bytes(model.codes)
    plans = [_sample_plan(state, rng) for _ in range(RANDOM_STARTS)]
    parents = list(model.codes[rng.permutation(find_non_dominated(mean, sizes))[:FRONT_PARENTS]])
    for budget in state.budgets:
        plans.append(solve(space, state.sensitivities, budget).plan)
        fitting = np.flatnonzero(sizes <= budget)
        if len(fitting):
            parents.append(model.codes[fitting[mean[fitting].argmin()]])
            plans.append(solve_linearized(state, model, parents[-1], budget))
    return np.concatenate([space.encode_many(plans), *map(steps.list_neighbours, parents)])


def solve_linearized(state: StudyState, model: PlanGP, code: np.ndarray, budget: int) -> Plan:
    """The best plan under a budget if the model's mean were additive around a plan (2, G)."""
    shape = state.memory.choice_bytes.shape
    g, b, r = np.indices(shape).reshape(3, -1)
    codes = np.tile(code, (len(g), 1, 1))
    codes[np.arange(len(g)), :, g] = np.column_stack([b, r])
    return solve_table(state.space, model.predict(codes)[0].reshape(shape), budget)


def _sample_plan(state: StudyState, rng: np.random.Generator) -> Plan:
    steps = AdjacentSteps(state.space)
    code = steps.sample(rng)
    return state.space.decode(steps.repair(code, state.budgets[rng.integers(len(state.budgets))], rng))
