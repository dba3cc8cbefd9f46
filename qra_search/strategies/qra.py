"""The default strategy: a Bayesian table of the loss, an exact knapsack inside, and evaluations chosen by their worth.

Bytes are known exactly and add up over groups. The loss nearly does, as a table over (group, bits, rank), so a few
dozen evaluations say much about it. Each proposal:

1. *Belief.* Fit the table to the log (`surrogates.table`): log-normal damage around the sensitivities, their units,
   trust in them and rank decay learnt, widths and noise by evidence (`surrogates.evidence`). Running trials count as if
   they came out as predicted.
2. *Candidates.* Draw tables from the posterior and solve the knapsack on each, for every budget: plausible optima.
   Add the neighbours of each budget's incumbent, one change or a swap away.
3. *Worth.* Add up over budgets the expected fall of the best mean among evaluated plans: what would be handed over. The
   candidate of greatest worth is proposed.

The plan handed over is the one of lowest posterior mean: a lucky draw is seen through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import ThreadpoolController

from qra_search.allocate.solve import solve
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.base import Estimates, Strategy
from qra_search.strategies.random import random_plan
from qra_search.surrogates.basis import TableBasis
from qra_search.surrogates.evidence import refined
from qra_search.surrogates.knowledge_gradient import knowledge_gradient
from qra_search.surrogates.moves import distinct, neighbours, solve_many
from qra_search.surrogates.table import Rows, TableFit, Widths

MAX_ROWS = 400
"""Rows that the table is fitted to: all at first, then those of lowest loss."""
AT_ONCE = 3
"""Budgets served by one proposal; of more, every second, third, ... in turn."""
BLAS = ThreadpoolController()
"""Held to one thread: the matrices are small, more threads wait on each other wherever the cores are busy (a hundred
times the processor time was seen), and rounding, and so the proposals, would hang on their number."""
FEWEST_REPLICATES = 3
"""Second and further evaluations of plans from which the noise between seeds is estimated."""
LEAST_NOISE = 1e-4
"""Of the table, as a share of its spread: with none its covariance would be singular."""
SPANS = (0.4, 1.0)
"""Widths of the posterior at which tables are drawn, in turn."""
MOVES = 40
"""Single changes of each incumbent among the candidates, and twice as many swaps."""
KEEP = 12
"""Evaluated plans of each budget that compete for being handed over."""
ATTEMPTS = 50
MOST_SEEDS = 16
"""Seeds told apart by what they add; a log from elsewhere may have one for every trial."""


class QRAStrategy(Strategy):
    """Proposes the evaluation of greatest worth under a Bayesian table of the loss.

    Args:
        draws: tables drawn for a proposal.
        sweeps: passes over the hyperparameters by evidence; 0 leaves them as given.
        seeds: seeds that proposals take in turn, beginning with the study's. With one, all plans see the same batches,
            and the search fits these; with more, losses in the log are not to be compared across seeds, estimates are.
        widths: where the hyperparameters start.
    """

    name = "qra"

    def __init__(self, *, draws: int = 24, sweeps: int = 2, seeds: int = 1, widths: Widths | None = None):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        self.spans = np.append(0.0, np.resize(SPANS, draws))
        self.sweeps, self.seeds, self.widths = sweeps, seeds, widths or Widths()

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        with BLAS.limit(limits=1, user_api="blas"):
            return self._propose(state, n)

    def _propose(self, state: StudyState, n: int) -> list[Proposal]:
        fit = self._fit(state, observed(state.space, state.full)[1]) if n > 0 else None
        waiting = [t.plan for t in state.pending if t.fidelity >= 1.0]
        asked = set(state.seen)
        proposals: list[Proposal] = []
        for k in range(n):
            found = self._ranked(state, given(state.space, fit, waiting), k) if fit is not None else iter(())
            proposal = next((p for p in found if p.plan.key not in asked), None) or self._without_model(state, asked, k)
            if proposal is None:
                break
            asked.add(proposal.plan.key)
            waiting.append(proposal.plan)
            proposals.append(proposal)
        return proposals

    def estimate(self, state: StudyState) -> Estimates:
        plans, rows = observed(state.space, state.full)
        with BLAS.limit(limits=1, user_api="blas"):
            fit = self._fit(state, rows)
            if fit is None:
                return Estimates((), np.zeros(0), np.zeros(0))
            mean, std = rows.loss.copy(), np.full(len(rows), fit.spread)
            fitted = fitted_rows(rows)
            mean[fitted], std[fitted] = fit.at_rows()
        return Estimates(tuple(plans), mean, std)

    def _fit(self, state: StudyState, rows: Rows) -> TableFit | None:
        """The table given the log; None if nothing was evaluated in full."""
        if not len(rows):
            return None
        basis = TableBasis(state.space, state.sensitivities)
        fit = TableFit(basis, rows.at(fitted_rows(rows)), self.widths)
        noise = replicate_noise(state)
        if noise > 0:
            known = replace(self.widths, noise=max(noise / fit.spread, LEAST_NOISE))
            fit = TableFit(basis, fit.rows, known, fit.theta)
        return refined(fit, self.sweeps)

    def _ranked(self, state: StudyState, fit: TableFit, k: int) -> Iterator[Proposal]:
        """The candidates, that of greatest worth first."""
        space, budgets = state.space, self._budgets(state, k)
        candidates = self._candidates(state, fit, budgets, k)
        known, R = candidates.known, fit.basis.shape[2]
        n = len(known)
        choice = np.concatenate([fit.rows.b[known] * R + fit.rows.r[known], candidates.new])
        b, r = choice // R, choice % R
        mean, cov = fit.joint(b, r)
        mean[:n] = candidates.believed
        excess = np.maximum(mean - fit.best, 0.0)
        own = fit.own(excess)
        luck = fit.error(fit.widths, 1.0, excess) - own
        own[:n] *= luck[:n] / (own[:n] + luck[:n])
        cov[np.diag_indices(len(cov))] += own
        change = cov[n:] / np.sqrt(np.diag(cov) + luck)[n:, None]
        size = space.memory.bytes(b, r)
        worth = sum(knowledge_gradient(mean, change, n, size <= budget) for budget in budgets)
        seed = self._seed(state, k)
        shift = float(fit.shift(shares([[seed]], seeds_of(state.full)))[0])
        for i in n + np.argsort(-np.asarray(worth), kind="stable"):
            plan = space.decode(b[i], r[i])
            deviation = float(np.sqrt(max(cov[i, i], 0.0)))
            yield Proposal(plan, 1.0, seed, "table", float(mean[i] + shift), deviation)

    def _seed(self, state: StudyState, k: int) -> int:
        """The seed in turn."""
        return state.seed + (len(state.trials) + k) % self.seeds

    def _without_model(self, state: StudyState, asked: set[str], k: int) -> Proposal | None:
        """The allocation for the budget in turn; if it is taken, a random plan; None if none is left."""
        budget = state.budgets[(len(state.trials) + k) % len(state.budgets)]
        plan = solve(state.space, state.sensitivities, budget).plan
        if plan.key not in asked:
            return Proposal(plan, seed=self._seed(state, k), origin="prior")
        rng = state.rng(k)
        for _ in range(ATTEMPTS):
            plan = random_plan(state, rng, budget)
            if plan.key not in asked:
                return Proposal(plan, seed=self._seed(state, k), origin="random")
        return None

    def _budgets(self, state: StudyState, k: int) -> list[int]:
        """The budgets that the next proposal is weighed for."""
        step = -(-len(state.budgets) // AT_ONCE)
        return list(state.budgets[(len(state.trials) + k) % step :: step])

    def _candidates(self, state: StudyState, fit: TableFit, budgets: list[int], k: int) -> Candidates:
        memory, rows, fixed = state.memory, fit.rows, state.space.fixed_bytes
        G, B, R = fit.basis.shape
        size, allowed = memory.choice.reshape(G, -1), memory.allowed.reshape(G, -1)
        tables = np.where(allowed, fit.draws(state.rng(k), self.spans).reshape(-1, G, B * R), np.inf)
        believed, _ = fit.at_rows()
        used = memory.bytes(rows.b, rows.r)
        evaluated = rows.b * R + rows.r
        known: set[int] = set()
        found = []
        for budget in budgets:
            fits = np.flatnonzero(used <= budget)
            best = fits[np.argsort(believed[fits], kind="stable")[:KEEP]]
            known.update(best.tolist())
            found.append(solve_many(tables, size, budget - fixed))
            if len(best):
                found.append(neighbours(evaluated[best[0]], tables[0], size, budget - fixed, MOVES))
        tried = {x.tobytes() for x in evaluated}
        index = np.array(sorted(known), int)
        return Candidates(index, believed[index], distinct(np.concatenate(found), tried))


@dataclass(frozen=True)
class Candidates:
    """What a proposal is chosen from; a plan is coded as int (G,), bits level times R plus rank level.

    Attributes:
        known: rows of the fit that may be handed over, and what is `believed` of their losses.
        new: (M, G), plans not yet evaluated.
    """

    known: np.ndarray
    believed: np.ndarray
    new: np.ndarray


def given(space: SearchSpace, fit: TableFit, plans: Sequence[Plan]) -> TableFit:
    """The fit given that these plans come out as predicted."""
    return fit.given(*space.encode_many(plans)) if plans else fit


def replicate_noise(state: StudyState) -> float:
    """Deviation between seeds in nats, pooled over the plans evaluated in full with several; 0 while these are few.

    It is where the table's noise starts in place of a default; evidence moves it from there.
    """
    losses: dict[str, dict[int, float]] = {}
    for trial in state.full:
        losses.setdefault(trial.plan.key, {})[trial.seed] = trial.loss
    freedom = sum(len(some) - 1 for some in losses.values())
    squares = sum(float(np.var(list(some.values()))) * len(some) for some in losses.values())
    return float(np.sqrt(squares / freedom)) if freedom >= FEWEST_REPLICATES else 0.0


def observed(space: SearchSpace, trials: Sequence[Trial]) -> tuple[list[Plan], Rows]:
    """Trials gathered by plan, in the order in which they first appear."""
    seen: dict[str, list[Trial]] = {}
    for trial in trials:
        seen.setdefault(trial.plan.key, []).append(trial)
    plans = [some[0].plan for some in seen.values()]
    b, r = space.encode_many(plans)
    weight = np.array([len(some) for some in seen.values()], float)
    mean = np.array([float(np.mean([t.loss for t in some])) for some in seen.values()])
    return plans, Rows(b, r, mean, weight, shares([[t.seed for t in some] for some in seen.values()], seeds_of(trials)))


def seeds_of(trials: Sequence[Trial]) -> list[int]:
    """The seeds of most of these trials, the commonest first; what any other adds counts as noise."""
    return [seed for seed, _ in Counter(t.seed for t in trials).most_common(MOST_SEEDS)]


def shares(each: Sequence[Sequence[int]], known: Sequence[int]) -> np.ndarray:
    """(len(each), len(known) - 1), the share of each of the known seeds but the first in each list of seeds."""
    others = known[1:]
    share = [[some.count(seed) / len(some) for seed in others] for some in each]
    return np.array(share, float).reshape(len(each), len(others))


def fitted_rows(rows: Rows) -> np.ndarray:
    """Indices, ascending, of the rows that the table is fitted to: those of lowest loss, where there are many."""
    return np.sort(np.argsort(rows.loss, kind="stable")[:MAX_ROWS])
