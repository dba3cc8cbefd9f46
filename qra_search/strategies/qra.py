"""The default strategy: a Bayesian table of the loss, an exact knapsack inside, and evaluations chosen by their worth.

Bytes are known exactly and add up over groups. The loss nearly does, as a table over (group, bits, rank), so a few
dozen evaluations say much about it. Each proposal:

1. *Belief.* Fit the table to the log (`surrogates.posterior`): log-normal damage around the sensitivities, their units,
   trust in them and rank decay learnt, widths and noise by evidence. Running trials count as if
   they came out as predicted.
2. *Candidates.* Draw tables from the posterior and solve the knapsack on each, for every budget: plausible optima.
   Add the neighbours of each budget's incumbent, one change or a swap away.
3. *Worth.* Add up over budgets the expected fall of the best posterior mean among evaluated plans. The
   candidate of greatest worth is proposed.

The best plan is the one of lowest posterior mean, so that no lucky draw sets it. Above `MAX_GROUPS` groups
only the optima of the sensitivities are proposed, for the budgets and a sweep below them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from qra_search.allocate.knapsack import decode_items, flatten_choices, solve_many
from qra_search.allocate.solve import build_additive_table, solve
from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal
from qra_search.space.steps import exclude_known
from qra_search.strategies import Estimates, Strategy, average_replicates
from qra_search.strategies.additive import propose_optima
from qra_search.strategies.simple import rotate_budgets, sample_plan
from qra_search.surrogates.acquisition import knowledge_gradient
from qra_search.surrogates.basis import MAX_GROUPS
from qra_search.surrogates.posterior import BLAS_THREADS, TableFit, fit_table

BUDGETS_PER_PROPOSAL = 3
"""Budgets served by one proposal; of more, every second, third, ... in turn."""
POSTERIOR_WIDTHS = (0.4, 1.0)
"""Widths of the posterior at which tables are drawn, in turn."""
MOVES_PER_INCUMBENT = 40
"""Single changes of each incumbent among the candidates, and twice as many swaps."""
KEPT_PLANS = 12
"""Evaluated plans of each budget that may become its best plan."""
MAX_ATTEMPTS = 50
PRIOR_ORIGIN = "prior"
"""Origin of the optima of the sensitivities."""


class QRAStrategy(Strategy):
    """Bayesian optimization of a table of losses, one entry per group and level, that begins with the sensitivities.

    Args:
        draws: tables drawn for a proposal.
    """

    name = "qra"

    def __init__(self, *, draws: int = 24):
        if draws < 1:
            raise ValueError(f"option 'draws' of strategy 'qra' must be at least 1, got {draws}")
        self.spans = np.append(0.0, np.resize(POSTERIOR_WIDTHS, draws))

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        if len(state.space) > MAX_GROUPS:
            table = build_additive_table(state.space, state.sensitivities)
            done = sum(t.proposal.origin == PRIOR_ORIGIN for t in state.trials)
            return propose_optima(state, table, n, origin=PRIOR_ORIGIN, skip=done)
        with BLAS_THREADS.limit(limits=1, user_api="blas"):
            return self._propose(state, n)

    def _propose(self, state: StudyState, n: int) -> list[Proposal]:
        fit = fit_table(state) if n > 0 else None
        waiting = [t.plan for t in state.pending if t.fidelity >= 1.0]
        asked = set(state.seen)
        proposals: list[Proposal] = []
        for k in range(n):
            codes = state.space.encode_many(waiting)
            found = iter(()) if fit is None else self._rank_candidates(state, fit.condition_on(codes), k)
            proposal = next((p for p in found if p.plan not in asked), None) or self._fall_back(
                state, asked, k
            )
            if proposal is None:
                break
            asked.add(proposal.plan)
            waiting.append(proposal.plan)
            proposals.append(proposal)
        return proposals

    def estimate(self, state: StudyState) -> Estimates:
        observed = average_replicates(state.full)
        with BLAS_THREADS.limit(limits=1, user_api="blas"):
            fit = fit_table(state)
            return observed if fit is None else Estimates(observed.plans, *fit.predict_evaluated())

    def _rank_candidates(self, state: StudyState, fit: TableFit, k: int) -> Iterator[Proposal]:
        """The candidates, that of greatest worth first."""
        space = state.space
        step = -(-len(state.budgets) // BUDGETS_PER_PROPOSAL)
        budgets = list(state.budgets[(len(state.trials) + k) % step :: step])
        believed, _ = fit.predict_evaluated()
        known, new = self._list_candidates(state, fit, believed, budgets, k)
        n = len(known)
        codes = np.concatenate([fit.rows.codes[known], new])
        mean, cov = fit.predict(codes)
        mean[:n] = believed[known]
        excess = np.maximum(mean - fit.best, 0.0)
        own = fit.compute_own_variance(excess)
        luck = fit.observation_variance(fit.widths, 1.0, excess) - own
        own[:n] *= luck[:n] / (own[:n] + luck[:n])
        cov[np.diag_indices(len(cov))] += own
        change = cov[n:] / np.sqrt(np.diag(cov) + luck)[n:, None]
        size = space.memory.bytes(codes)
        worth = sum(knowledge_gradient(mean, change, n, size <= budget) for budget in budgets)
        for i in n + np.argsort(-np.asarray(worth), kind="stable"):
            plan = space.decode(codes[i])
            yield Proposal(plan, 1.0, state.seed, "table", float(mean[i]))

    def _fall_back(self, state: StudyState, asked: set[Plan], k: int) -> Proposal | None:
        """The allocation for the first budget in turn whose allocation is new, else a random plan, for the budget in
        turn or, if it has nothing new, the largest; None if none is left."""
        budgets = rotate_budgets(state, k)
        rng = state.rng(k)
        allocated = (
            (solve(state.space, state.sensitivities, budget).plan, PRIOR_ORIGIN) for budget in budgets
        )
        limits = [budgets[0]] * MAX_ATTEMPTS + [state.largest_budget] * MAX_ATTEMPTS
        drawn = ((sample_plan(state, rng, limit), "random") for limit in limits)
        new = ((plan, origin) for plan, origin in chain(allocated, drawn) if plan not in asked)
        return next((Proposal(plan, seed=state.seed, origin=origin) for plan, origin in new), None)

    def _list_candidates(
        self, state: StudyState, fit: TableFit, believed: np.ndarray, budgets: list[int], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (K,) of the fit that may be the best plan, and codes (M, 2, G) of plans not yet evaluated."""
        memory = state.memory
        rows = fit.rows
        fixed = state.space.fixed_bytes
        tables = np.where(memory.allowed, fit.sample_tables(state.rng(k), self.spans), np.inf)
        used = memory.bytes(rows.codes)
        known: set[int] = set()
        found = []
        for budget in budgets:
            fits = np.flatnonzero(used <= budget)
            best = fits[np.argsort(believed[fits], kind="stable")[:KEPT_PLANS]]
            known.update(best.tolist())
            found.append(solve_many(tables, memory.choice_bytes, budget - fixed))
            if len(best):
                found.append(
                    list_neighbours(
                        rows.codes[best[0]],
                        tables[0],
                        memory.choice_bytes,
                        budget - fixed,
                        MOVES_PER_INCUMBENT,
                    )
                )
        return np.array(sorted(known), int), exclude_known(np.concatenate(found), rows.codes)


def list_neighbours(
    code: np.ndarray, mean: np.ndarray, size: np.ndarray, budget: int, count: int
) -> np.ndarray:
    """Plans int64 (M, 2, G) one or two changes away from a plan (2, G), within the budget; the most promising by the
    mean table.

    Args:
        mean: float (G, B, R), the mean table; inf if a choice is not allowed.
        size: int (G, B, R), bytes of each choice.
        budget: what the sizes may sum to.
        count: of swaps; half as many single changes.
    """
    ranks = mean.shape[-1]
    mean = flatten_choices(mean)
    size = flatten_choices(size)
    plan = code[0] * ranks + code[1]
    G, C = mean.shape
    rows = np.arange(G)
    delta = mean - mean[rows, plan][:, None]
    extra = size - size[rows, plan][:, None]
    room = budget - int(size[rows, plan].sum())
    gain = delta.ravel()
    cost = extra.ravel()
    ok = np.isfinite(gain)
    ok[rows * C + plan] = False
    single = np.flatnonzero(ok & (cost <= room))
    single = single[np.argsort(gain[single], kind="stable")[: count // 2]]
    out = np.repeat(plan[None], len(single), 0)
    out[np.arange(len(single)), single // C] = single % C
    # Pairs: one change that helps with one that pays for it.
    up = np.flatnonzero(ok & (gain < 0))
    up = up[np.argsort(gain[up] / np.maximum(cost[up], 1), kind="stable")[:60]]
    down = np.flatnonzero(ok & (cost < 0))
    down = down[np.argsort(-gain[down] / cost[down], kind="stable")[:60]]
    i, j = np.repeat(up, len(down)), np.tile(down, len(up))
    good = (cost[i] + cost[j] <= room) & (i // C != j // C)
    i, j = i[good], j[good]
    order = np.argsort(gain[i] + gain[j], kind="stable")[:count]
    i, j = i[order], j[order]
    pairs = np.repeat(plan[None], len(i), 0)
    pairs[np.arange(len(i)), i // C] = i % C
    pairs[np.arange(len(i)), j // C] = j % C
    return decode_items(np.concatenate([out, pairs]), ranks)
