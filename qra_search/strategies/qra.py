"""The default strategy: a Bayesian additive table of the loss with an exact knapsack inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from qra_search.space import Plan, SearchSpace
from qra_search.strategies.base import Estimates, Strategy, StudyState
from qra_search.surrogates.evidence import fit_table
from qra_search.surrogates.moves import neighbours, solve_many
from qra_search.surrogates.table import TableBasis, TableFit
from qra_search.trials import Proposal, Trial


@dataclass(frozen=True)
class Data:
    """Evaluated plans, replicates averaged: level indices (N, G), losses (N,), and how many each averages."""

    plans: tuple[Plan, ...]
    b: np.ndarray
    r: np.ndarray
    loss: np.ndarray
    count: np.ndarray


class QRAStrategy(Strategy):
    """See the module's docstring."""

    name = "qra"

    def __init__(self, *, draws: int = 24, narrow: float = 0.4, moves: int = 200, budget: str = "turn", **widths):
        self.draws, self.narrow, self.moves, self.budget, self.options = draws, narrow, moves, budget, widths

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        space = state.space
        basis = TableBasis(space, state.prior)
        data = observed(space, state.full)
        fit = fit_table(basis, data.b, data.r, data.loss, data.count, **self.options)
        seen = set(state.seen)
        waiting = [t.plan for t in state.pending]
        proposals: list[Proposal] = []
        for k in range(n):
            belief = fit.with_pending(*space.encode_many(waiting)) if waiting else fit
            plan, mean, std = self._choose(state, belief, data, seen, k)
            if plan is None:
                break
            seen.add(plan.key)
            waiting.append(plan)
            proposals.append(Proposal(plan, seed=state.seed, origin="table", predicted_loss=mean, predicted_std=std))
        return proposals

    def estimate(self, state: StudyState) -> Estimates:
        data = observed(state.space, state.full)
        if not data.plans:
            return Estimates((), np.zeros(0), np.zeros(0))
        fit = fit_table(TableBasis(state.space, state.prior), data.b, data.r, data.loss, data.count, **self.options)
        mean, std = fit.at_data()
        return Estimates(data.plans, mean, std)

    def _choose(self, state, fit: TableFit, data: Data, seen: set[str], k: int):
        space, rng = state.space, state.rng(k)
        G, B, R = fit.basis.shape
        size = space.memory.choice.reshape(G, -1)
        allowed = space.memory.allowed.reshape(G, -1)
        turn = (len(state.trials) + k) % len(state.budgets)
        budgets = [state.budgets[turn]] if self.budget == "turn" else list(state.budgets)
        width = np.where(np.arange(self.draws) % 2, 1.0, self.narrow)
        tables = fit.draws(rng, self.draws, width).reshape(self.draws, G, -1)
        mean_table = fit.table().reshape(G, -1)
        tables = np.where(allowed, np.concatenate([mean_table[None], tables]), np.inf)
        incumbent, _ = fit.at_data()
        memory = space.memory.bytes(data.b, data.r)
        found = []
        for budget in budgets:
            room = budget - space.fixed_bytes
            found.append(solve_many(tables, size, room))
            if (memory <= budget).any():
                at = int(np.where(memory <= budget, incumbent, np.inf).argmin())
                found.append(
                    neighbours(data.b[at] * R + data.r[at], tables[0], tables[1:], size, room, self.moves, rng)
                )
        choice = np.unique(np.concatenate(found), axis=0)
        b, r = choice // R, choice % R
        plans = [space.decode(x, y) for x, y in zip(b, r)]
        fresh = np.array([p.key not in seen for p in plans])
        if not fresh.any():
            return None, None, None
        b, r = b[fresh], r[fresh]
        plans = [p for p, ok in zip(plans, fresh) if ok]
        mean, var = fit.predict(b, r)
        std = np.sqrt(var)
        used = space.memory.bytes(b, r)
        score = np.zeros(len(b))
        for budget in budgets:
            best = incumbent[memory <= budget].min(initial=np.inf)
            if not np.isfinite(best):
                best = float(data.loss.max())
            score += np.where(used <= budget, expected_improvement(mean, std, best), 0.0)
        at = int(score.argmax()) if score.max() > 0 else int(mean.argmin())
        return plans[at], float(mean[at]), float(std[at])


def expected_improvement(mean: np.ndarray, std: np.ndarray, best: float) -> np.ndarray:
    """Expected fall below `best` (M,) of Gaussian losses."""
    z = (best - mean) / std
    return std * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))


def observed(space: SearchSpace, trials: Sequence[Trial]) -> Data:
    """Trials gathered by plan, in the order in which plans first appear."""
    losses: dict[str, list[float]] = {}
    plans: dict[str, Plan] = {}
    for trial in trials:
        plans.setdefault(trial.plan.key, trial.plan)
        losses.setdefault(trial.plan.key, []).append(trial.loss)
    b, r = space.encode_many(plans.values())
    return Data(
        tuple(plans.values()), b, r,
        np.array([float(np.mean(v)) for v in losses.values()]),
        np.array([len(v) for v in losses.values()], float),
    )  # fmt: skip
