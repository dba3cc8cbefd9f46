"""The default strategy: a Bayesian table of the loss, an exact knapsack inside, and evaluations chosen by their worth.

Bytes are known exactly and add up over groups. The loss nearly does, as a table over (group, bits, rank), so a few
dozen evaluations say much about it. Each proposal:

1. *Belief.* Fit the table to the log (`surrogates.table`): log-normal damage around the prior, trust in the prior and
   rank decay learnt, widths and noise by evidence (`surrogates.evidence`). Running trials count as if they came out as
   predicted.
2. *Candidates.* Draw tables from the posterior and solve the knapsack on each, for every budget: plausible optima.
   Add the neighbours of each budget's incumbent, one change or a swap away.
3. *Worth.* Add up over budgets the expected fall of the best mean among evaluated plans (what would be handed over) and
   the same among all candidates (what is learnt for later), both in nats, divided by cost. The best candidate is
   proposed.

The plan handed over is the one of lowest posterior mean: a lucky draw is seen through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr
from threadpoolctl import ThreadpoolController

from qra_search.space import Plan, SearchSpace
from qra_search.strategies.additive import additive_plan, prior_table
from qra_search.strategies.base import Estimates, Strategy, StudyState
from qra_search.strategies.random import random_plan
from qra_search.surrogates.basis import TableBasis
from qra_search.surrogates.evidence import refined
from qra_search.surrogates.moves import distinct, neighbours, solve_many
from qra_search.surrogates.table import Rows, TableFit, Widths
from qra_search.surrogates.worth import Outlook
from qra_search.trials import Proposal, Trial

MAX_ROWS = 400
"""Rows that the table is fitted to: all at first, then those of lowest loss."""
AT_ONCE = 3
"""Budgets served by one proposal; of more, every second, third, ... in turn."""
POOL = 150
"""Candidates, the best by their mean, that count as what a search might find anywhere."""
BLAS = ThreadpoolController()
"""Held to one thread: the matrices are small, more threads wait on each other wherever the cores are busy (a hundred
times the processor time was seen), and rounding, and so the proposals, would hang on their number."""
MAX_REPLICATES = 6
FEWEST_REPLICATES = 3
"""Second and further evaluations of plans from which the noise between seeds is estimated."""
LEAST_NOISE = 1e-4
"""Of the table, as a share of its spread: with none its covariance would be singular."""
LEAST_AGREEMENT = 0.5
"""Rank correlation with full losses below which the lowest fidelity is not used."""
ATTEMPTS = 50


class QRAStrategy(Strategy):
    """Proposes the evaluation of greatest worth under a Bayesian table of the loss.

    Args:
        draws: tables drawn for a proposal, at the widths `spans` of the posterior in turn.
        moves: single changes of each incumbent among the candidates, and twice as many swaps; 0 leaves them out.
        keep: evaluated plans of each budget that compete for being handed over.
        anywhere: weight of the expected fall among all candidates; 0 leaves it out.
        all_budgets: whether an evaluation is weighed for all budgets, or for one in turn.
        confirm: whether an evaluated plan may be evaluated again, with a new seed, where that is worth most.
        low: whether to evaluate at the lowest fidelity where that is worth most for its cost, as long as it ranks the
            plans seen at both fidelities as their full losses do.
        pairs: plans that are seen at both fidelities before the lowest is trusted with others.
        sweeps: passes over the hyperparameters by evidence; 0 leaves them as given.
        alike: whether groups of one kind, and of near depth, are taken to be alike.
        widths: where the hyperparameters start, by name (`surrogates.table.Widths`).
    """

    name = "qra"

    def __init__(
        self,
        *,
        draws: int = 24,
        spans: Sequence[float] = (0.4, 1.0),
        moves: int = 40,
        keep: int = 12,
        anywhere: float = 1.0,
        all_budgets: bool = True,
        confirm: bool = False,
        low: bool = False,
        pairs: int = 6,
        sweeps: int = 2,
        alike: bool = True,
        **widths: float,
    ):
        self.width = np.append(0.0, np.resize(np.asarray(spans, float), draws))
        self.moves, self.keep, self.anywhere = moves, keep, anywhere
        self.all_budgets, self.confirm, self.low, self.pairs = all_budgets, confirm, low, pairs
        self.sweeps, self.alike, self.widths = sweeps, alike, Widths(**widths)

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        with BLAS.limit(limits=1, user_api="blas"):
            return self._propose(state, n)

    def _propose(self, state: StudyState, n: int) -> list[Proposal]:
        levels = fidelities(state)
        fit = self._fit(state, observed(state.space, state.done, levels)[1], levels) if n > 0 else None
        asked = Asked(state, levels)
        proposals: list[Proposal] = []
        for k in range(n):
            proposal = None
            if fit is not None:
                proposal = self._pair(state, levels, asked) or self._worthiest(state, levels, fit, asked, k)
            proposal = proposal or _without_model(state, asked, k)
            if proposal is None:
                break
            asked.add(proposal)
            proposals.append(proposal)
        return proposals

    def estimate(self, state: StudyState) -> Estimates:
        levels = fidelities(state)
        plans, rows = observed(state.space, state.done, levels)
        with BLAS.limit(limits=1, user_api="blas"):
            fit = self._fit(state, rows, levels)
            if fit is None:
                return Estimates((), np.zeros(0), np.zeros(0))
            mean, std = rows.loss.copy(), np.full(len(rows), fit.spread)
            fitted = fitted_rows(rows)
            mean[fitted], std[fitted] = fit.at_rows()
        full = np.flatnonzero(rows.low == 0)
        return Estimates(tuple(plans[i] for i in full), mean[full], std[full])

    def _fit(self, state: StudyState, rows: Rows, levels: tuple[float, ...]) -> TableFit | None:
        """The table given the log; None where nothing was evaluated at full fidelity."""
        if not (rows.low == 0).any():
            return None
        basis = TableBasis(state.space, state.prior, alike=self.alike)
        lows = len(levels) - 1 if self.low or any(t.fidelity < 1.0 for t in state.trials) else 0
        fit = TableFit(basis, rows.at(fitted_rows(rows)), self.widths, lows=lows)
        noise = replicate_noise(state)
        if noise > 0:
            known = replace(self.widths, noise=max(noise / fit.spread, LEAST_NOISE))
            fit = TableFit(basis, fit.rows, known, fit.theta, lows)
        return refined(fit, self.sweeps)

    def _pair(self, state: StudyState, levels: tuple[float, ...], asked: Asked) -> Proposal | None:
        """A plan known at full fidelity, to be seen at the lowest one, until there are enough."""
        lowest = levels[-1]
        full = {t.plan.key for t in state.full}
        if not self.low or lowest >= 1.0 or sum(f == lowest and k in full for k, f in asked.taken) >= self.pairs:
            return None
        for trial in state.full:
            if asked.may(trial.plan, lowest):
                return Proposal(trial.plan, lowest, asked.seed(trial.plan), origin="pair")
        return None

    def _worthiest(
        self, state: StudyState, levels: tuple[float, ...], fit: TableFit, asked: Asked, k: int
    ) -> Proposal | None:
        """The candidate of greatest worth for its cost; None where there is none."""
        space, fit = state.space, asked.given(fit)
        budgets = self._budgets(state, k)
        candidates = self._candidates(state, fit, budgets, k)
        helps = self.low and fit.lows and low_agrees(state, levels[-1], self.pairs)
        new, low = candidates.new, candidates.cheap if helps else candidates.cheap[:0]
        known, R = candidates.known, fit.basis.shape[2]
        plans, n = len(known) + len(new), len(known)
        choice = np.concatenate([fit.rows.b[known] * R + fit.rows.r[known], new, low])
        b, r, level = choice // R, choice % R, np.repeat([0, fit.lows], [plans, len(low)])
        mean, cov = fit.joint(b, r, level)
        mean[:n] = candidates.believed
        excess = np.maximum(mean - np.where(level > 0, mean[plans:].min(initial=np.inf), fit.best), 0.0)
        cost = np.array(levels)[level]
        own = np.where(level == 0, fit.own(excess), 0.0)
        luck = fit.error(fit.widths, cost, excess) - own
        own[:n] *= luck[:n] / (own[:n] + luck[:n])
        cov[np.diag_indices(len(cov))] += own
        evaluations = np.arange(0 if self.confirm else n, len(choice))
        reach = cov[evaluations, :plans] / np.sqrt(np.diag(cov) + luck)[evaluations, None]
        outlook = Outlook(mean[:plans], reach, np.where(evaluations < plans, evaluations, -1), np.arange(plans) < n)
        size = space.memory.bytes(b[:plans], r[:plans])
        worth = np.zeros(len(evaluations))
        for budget in budgets:
            worth += outlook.handover(size <= budget) + self.anywhere * outlook.anywhere(size <= budget, POOL)
        worth /= cost[evaluations]
        for i in np.argsort(-worth, kind="stable"):
            at = int(evaluations[i])
            plan, fidelity = space.decode(b[at], r[at]), float(cost[at])
            again = at < n and asked.count(plan) < MAX_REPLICATES and not asked.failed(plan)
            if again or (at >= n and asked.may(plan, fidelity)):
                origin = "confirm" if again else "table" if at < plans else "low"
                deviation = float(np.sqrt(max(cov[at, at], 0.0)))
                return Proposal(plan, fidelity, asked.seed(plan), origin, float(mean[at]), deviation)
        return None

    def _budgets(self, state: StudyState, k: int) -> list[int]:
        """The budgets that the next proposal is weighed for."""
        turn = len(state.trials) + k
        if not self.all_budgets:
            return [state.budgets[turn % len(state.budgets)]]
        step = -(-len(state.budgets) // AT_ONCE)
        return list(state.budgets[turn % step :: step])

    def _candidates(self, state: StudyState, fit: TableFit, budgets: list[int], k: int) -> Candidates:
        memory, rows, fixed = state.memory, fit.rows, state.space.fixed_bytes
        G, B, R = fit.basis.shape
        size, allowed = memory.choice.reshape(G, -1), memory.allowed.reshape(G, -1)
        tables = np.where(allowed, fit.draws(state.rng(k), self.width).reshape(-1, G, B * R), np.inf)
        believed, _ = fit.at_rows()
        used, full = memory.bytes(rows.b, rows.r), rows.low == 0
        known: set[int] = set()
        solved, near = [], []
        for budget in budgets:
            fits = np.flatnonzero(full & (used <= budget))
            best = fits[np.argsort(believed[fits], kind="stable")[: self.keep]]
            known.update(best.tolist())
            solved.append(solve_many(tables, size, budget - fixed))
            if len(best) and self.moves:
                near.append(
                    neighbours(rows.b[best[0]] * R + rows.r[best[0]], tables[0], size, budget - fixed, self.moves)
                )
        tried = {x.tobytes() for x in (rows.b * R + rows.r)[full]}
        index = np.array(sorted(known), int)
        return Candidates(
            index, believed[index], distinct(np.concatenate([*solved, *near]), tried),
            distinct(np.concatenate(solved), set()),
        )  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """What a proposal is chosen from; a plan is coded as int (G,), bits level times R plus rank level.

    Attributes:
        known: rows of the fit that may be handed over, and what is `believed` of their losses.
        new: (M, G), plans not yet evaluated at full fidelity.
        cheap: (C, G), plans for a lower fidelity.
    """

    known: np.ndarray
    believed: np.ndarray
    new: np.ndarray
    cheap: np.ndarray


class Asked:
    """What the log and this round's proposals already ask for."""

    def __init__(self, state: StudyState, levels: tuple[float, ...]):
        self.state, self.levels = state, levels
        self.taken = {(t.plan.key, t.fidelity) for t in state.trials}
        self._failed = {t.plan.key for t in state.trials if t.status == "failed"}
        self._counts = Counter(t.plan.key for t in state.trials if t.fidelity >= 1.0)
        self._seeds = {(t.plan.key, t.seed) for t in state.trials}
        self._waiting = [(t.plan, t.fidelity) for t in state.pending]

    def add(self, proposal: Proposal) -> None:
        self.taken.add((proposal.plan.key, proposal.fidelity))
        self._counts[proposal.plan.key] += proposal.fidelity >= 1.0
        self._seeds.add((proposal.plan.key, proposal.seed))
        self._waiting.append((proposal.plan, proposal.fidelity))

    def failed(self, plan: Plan) -> bool:
        return plan.key in self._failed

    def may(self, plan: Plan, fidelity: float) -> bool:
        """Whether a plan is new at a fidelity, and never failed."""
        return (plan.key, fidelity) not in self.taken and not self.failed(plan)

    def count(self, plan: Plan) -> int:
        return self._counts[plan.key]

    def seed(self, plan: Plan) -> int:
        """A seed that no evaluation of the plan has had: the study's own for the first."""
        seed = self.state.seed + self._counts[plan.key]
        while (plan.key, seed) in self._seeds:
            seed += 1
        return seed

    def given(self, fit: TableFit) -> TableFit:
        """The fit given that everything asked for comes out as predicted."""
        if not self._waiting:
            return fit
        b, r = self.state.space.encode_many(plan for plan, _ in self._waiting)
        fidelity = np.array([f for _, f in self._waiting])
        return fit.given(b, r, level_of(fidelity, self.levels), fidelity)


def replicate_noise(state: StudyState) -> float:
    """Deviation between seeds in nats, pooled over the plans evaluated in full more than once; 0 while these are few.

    It is where the table's noise starts in place of a default; evidence moves it from there.
    """
    losses: dict[str, list[float]] = {}
    for trial in state.full:
        losses.setdefault(trial.plan.key, []).append(trial.loss)
    freedom = sum(len(some) - 1 for some in losses.values())
    squares = sum(float(np.var(some)) * len(some) for some in losses.values())
    return float(np.sqrt(squares / freedom)) if freedom >= FEWEST_REPLICATES else 0.0


def low_agrees(state: StudyState, lowest: float, pairs: int) -> bool:
    """Whether the lowest fidelity was shown, on at least `pairs` plans, to rank them as full evaluations do."""
    full: dict[str, float] = {}
    low: dict[str, float] = {}
    for trial in state.done:
        if trial.fidelity >= 1.0 or trial.fidelity == lowest:
            (full if trial.fidelity >= 1.0 else low).setdefault(trial.plan.key, trial.loss)
    both = [key for key in full if key in low]
    if len(both) < max(pairs, 3):
        return False
    return bool(spearmanr([full[k] for k in both], [low[k] for k in both]).statistic >= LEAST_AGREEMENT)


def fidelities(state: StudyState) -> tuple[float, ...]:
    """Those of the evaluator and those of the log, the full one first."""
    lower = {f for f in state.fidelities if f < 1.0} | {t.fidelity for t in state.trials if t.fidelity < 1.0}
    return (1.0, *sorted(lower, reverse=True))


def level_of(fidelity: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """int (N,), place of each fidelity among the levels."""
    return np.array([levels.index(min(float(f), 1.0)) for f in fidelity], dtype=int)


def observed(space: SearchSpace, trials: Sequence[Trial], levels: tuple[float, ...]) -> tuple[list[Plan], Rows]:
    """Trials gathered by plan and fidelity, in the order in which they first appear."""
    losses: dict[tuple[str, float], list[float]] = {}
    plans: dict[tuple[str, float], Plan] = {}
    for trial in trials:
        key = (trial.plan.key, min(trial.fidelity, 1.0))
        plans.setdefault(key, trial.plan)
        losses.setdefault(key, []).append(trial.loss)
    b, r = space.encode_many(plans.values())
    fidelity = np.array([f for _, f in plans])
    weight = np.array([len(v) for v in losses.values()], float) * fidelity
    mean = np.array([float(np.mean(v)) for v in losses.values()])
    return list(plans.values()), Rows(b, r, level_of(fidelity, levels), mean, weight)


def fitted_rows(rows: Rows) -> np.ndarray:
    """Indices, ascending, of the rows that the table is fitted to: the best of each fidelity, where there are many."""
    excess = rows.loss.copy()
    for level in np.unique(rows.low):
        excess[rows.low == level] -= rows.loss[rows.low == level].min()
    return np.sort(np.lexsort((rows.low, excess))[:MAX_ROWS])


def _without_model(state: StudyState, asked: Asked, k: int) -> Proposal | None:
    """The prior's own optimum for the budget in turn; where it is taken, a random plan; None where none is left."""
    budget = state.budgets[(len(state.trials) + k) % len(state.budgets)]
    plan = additive_plan(state.space, prior_table(state.space, state.prior), budget)
    if plan is not None and asked.may(plan, 1.0):
        return Proposal(plan, seed=asked.seed(plan), origin="prior")
    rng = state.rng(k)
    for _ in range(ATTEMPTS):
        plan = random_plan(state, rng, budget)
        if asked.may(plan, 1.0):
            return Proposal(plan, seed=asked.seed(plan), origin="random")
    return None
