"""The default strategy: a Bayesian additive table of the loss with an exact knapsack inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qra_search.space import Plan, SearchSpace
from qra_search.strategies.additive import AdditiveStrategy
from qra_search.strategies.base import Estimates, Strategy, StudyState
from qra_search.surrogates.basis import TableBasis
from qra_search.surrogates.moves import neighbours, solve_many
from qra_search.surrogates.table import Rows, TableFit, Widths
from qra_search.trials import Proposal, Trial

_z, _w = np.polynomial.hermite_e.hermegauss(9)
NODES = tuple(zip(_z.tolist(), (_w / _w.sum()).tolist(), strict=True))


class QRAStrategy(Strategy):
    """See the module's docstring."""

    name = "qra"

    def __init__(
        self,
        *,
        draws: int = 24,
        spans: tuple[float, ...] = (0.4, 1.0),
        moves: int = 40,
        keep: int = 12,
        evaluated: float = 1.0,
        anywhere: float = 1.0,
        pool: int = 150,
        budget: str = "all",
        low: bool = False,
        low_count: int = 60,
        pairs: int = 4,
        info: float = 1.0,
        every: int = 0,
        sweeps: int = 2,
        widths: Widths = Widths(),
    ):
        self.draws, self.spans, self.moves, self.keep = draws, spans, moves, keep
        self.evaluated, self.anywhere, self.pool, self.budget = evaluated, anywhere, pool, budget
        self.pairs, self.info, self.every = pairs, info, every
        self.low, self.low_count, self.sweeps, self.widths = low, low_count, sweeps, widths

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        if not state.full:  # nothing to learn from yet: what the prior alone would choose
            return AdditiveStrategy(learn_from=None).propose(state, n)
        space = state.space
        levels = Levels.of(state)
        fit = self._fit(state, levels)
        taken = {(t.plan.key, t.fidelity) for t in state.trials}
        taken |= {(t.plan.key, f) for t in state.trials if t.status == "failed" for f in levels.values}
        waiting = [(t.plan, t.fidelity) for t in state.pending]
        proposals: list[Proposal] = []
        for k in range(n):
            paired = self._pair(state, levels, taken)
            if paired is not None:
                taken.add((paired.plan.key, paired.fidelity))
                waiting.append((paired.plan, paired.fidelity))
                proposals.append(paired)
                continue
            belief = fit
            if waiting:
                b, r = space.encode_many(p for p, _ in waiting)
                fidelity = np.array([f for _, f in waiting])
                belief = fit.given(b, r, levels.index(fidelity), fidelity)
            proposal = self._choose(state, levels, belief, taken, k)
            if proposal is None:
                break
            taken.add((proposal.plan.key, proposal.fidelity))
            waiting.append((proposal.plan, proposal.fidelity))
            proposals.append(proposal)
        return proposals

    def estimate(self, state: StudyState) -> Estimates:
        levels = Levels.of(state)
        plans, rows = observed(state.space, state.done, levels)
        if not (rows.low == 0).any():
            return Estimates((), np.zeros(0), np.zeros(0))
        mean, std = self._fit(state, levels).at_rows()
        full = np.flatnonzero(rows.low == 0)
        return Estimates(tuple(plans[i] for i in full), mean[full], std[full])

    def _pair(self, state: StudyState, levels: Levels, taken) -> Proposal | None:
        """A plan known at full fidelity, to be seen at the lowest one: what a lower fidelity shifts is learnt first."""
        if not self.low or len(levels.values) == 1:
            return None
        lowest = levels.values[-1]
        known = [p for p, f in taken if f == lowest]
        if len(known) >= self.pairs:
            return None
        for trial in state.full:
            if (trial.plan.key, lowest) not in taken:
                return Proposal(trial.plan, fidelity=lowest, seed=state.seed, origin="pair")
        return None

    def _fit(self, state: StudyState, levels: Levels) -> TableFit:
        _, rows = observed(state.space, state.done, levels)
        return TableFit(
            TableBasis(state.space, state.prior), rows, self.widths, lows=len(levels.values) - 1 if self.low else 0
        ).refined(self.sweeps)

    def _choose(self, state, levels, fit: TableFit, taken, k: int) -> Proposal | None:
        space, rng, rows = state.space, state.rng(k), fit.rows
        G, B, R = fit.basis.shape
        size = space.memory.choice.reshape(G, -1)
        allowed = space.memory.allowed.reshape(G, -1)
        turn = (len(state.trials) + k) % len(state.budgets)
        budgets = [state.budgets[turn]] if self.budget == "turn" else list(state.budgets)
        width = np.resize(self.spans, self.draws)
        tables = fit.draws(rng, width).reshape(self.draws, G, -1)
        tables = np.where(allowed, np.concatenate([fit.table().reshape(1, G, -1), tables]), np.inf)
        believed, _ = fit.at_rows()
        memory = space.memory.bytes(rows.b, rows.r)
        full = rows.low == 0
        optima, near, keep = [], [], []
        for budget in budgets:
            room = budget - space.fixed_bytes
            optima.append(solve_many(tables, size, room))
            ok = np.flatnonzero(full & (memory <= budget))
            if len(ok):
                best = ok[np.argsort(believed[ok], kind="stable")[: self.keep]]
                keep.extend(best.tolist())
                start = rows.b[best[0]] * R + rows.r[best[0]]
                near.append(neighbours(start, tables[0], size, room, self.moves))
        old = {x.tobytes() for x in (rows.b * R + rows.r)[full]}
        sane = distinct(np.concatenate([x[np.append(True, width <= 1.0)] for x in optima]), set())
        first = distinct(np.concatenate(optima), set())
        choice = distinct(np.concatenate([*optima, *near]), old)
        keep = np.array(sorted(set(keep)), int)
        cheap = first[: self.low_count] if self.low and len(levels.values) > 1 and fit.lows else first[:0]
        n, m = len(keep), len(keep) + len(choice)
        b = np.concatenate([rows.b[keep], choice // R, cheap // R])
        r = np.concatenate([rows.r[keep], choice % R, cheap % R])
        low = np.concatenate([np.zeros(m, int), np.full(len(cheap), fit.lows)])
        mean, cov = fit.joint(b, r, low)
        mean[:n] = believed[keep]
        used = space.memory.bytes(b, r)
        fidelity = np.array(levels.values)[low]
        excess = np.maximum(mean - np.where(low > 0, mean[m:].min(initial=np.inf), rows.loss[full].min()), 0)
        noise = fit.noise(fit.widths, fidelity) + fit.misfit(fit.widths, excess)
        score = sum(self._gain(mean, cov, noise, n, m, used <= budget) for budget in budgets) / fidelity[n:]
        if self.info > 0 or (self.every and (len(state.trials) + k) // len(state.budgets) % self.every == 0):
            names = {x.tobytes(): i for i, x in enumerate(choice)}
            pool = [n + names[x.tobytes()] for x in sane if x.tobytes() in names]
            if pool:
                sigma = cov[n:] / np.sqrt(np.maximum(np.diag(cov), 1e-18) + noise)[n:, None]
                reach = sigma[:, pool] - sigma[:, pool].mean(1, keepdims=True)
                info = np.sqrt((reach**2).mean(1))
                score = score + self.info * info * np.sqrt(1 / fidelity[n:]) if self.info > 0 else info
        for at in np.argsort(-score, kind="stable") + n:
            plan = space.decode(b[at], r[at])
            if (plan.key, float(fidelity[at])) not in taken:
                return Proposal(
                    plan, fidelity=float(fidelity[at]), seed=state.seed, origin="table" if at < m else "low",
                    predicted_loss=float(mean[at]), predicted_std=float(max(cov[at, at], 0) ** 0.5),
                )  # fmt: skip
        return None

    def _gain(self, mean, cov, noise, n: int, m: int, fits) -> np.ndarray:
        """Expected fall of the best mean within the budget by an evaluation of each candidate from `n` on."""
        var = np.maximum(np.diag(cov), 1e-18)
        sigma = cov[n:, :m] / np.sqrt(var + noise)[n:, None]
        total = np.zeros(len(mean) - n)
        if self.evaluated > 0 and fits[:n].any():
            pool = np.flatnonzero(fits[:n])
            now = mean[pool].min()
            reach = np.diag(sigma[:, n:])
            after = np.zeros(len(total))
            for z, w in NODES:
                least = (mean[pool][None] + z * sigma[:, pool]).min(1)
                own = np.where(fits[n:m], mean[n:m] + z * reach, np.inf)
                least[: m - n] = np.minimum(least[: m - n], own)
                after += w * least
            total += self.evaluated * (now - after)
        if self.anywhere > 0:
            pool = np.flatnonzero(fits[:m])
            pool = pool[np.argsort(mean[pool], kind="stable")[: self.pool]]
            now = mean[pool].min()
            after = sum(w * (mean[pool][None] + z * sigma[:, pool]).min(1) for z, w in NODES)
            total += self.anywhere * (now - after)
        return total


@dataclass(frozen=True)
class Levels:
    """Fidelities, the full one first."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, state: StudyState) -> Levels:
        lower = {f for f in state.fidelities if f < 1} | {t.fidelity for t in state.done if t.fidelity < 1}
        return cls((1.0, *sorted(lower, reverse=True)))

    def index(self, fidelity) -> np.ndarray:
        return np.array([0 if f >= 1 else self.values.index(f) for f in fidelity], int)


def distinct(choices: np.ndarray, known: set[bytes]) -> np.ndarray:
    """Rows (M, G) in order, each once and none that is known."""
    seen = set(known)
    keep = []
    for i, row in enumerate(choices):
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            keep.append(i)
    return choices[keep]


def observed(space: SearchSpace, trials: Sequence[Trial], levels: Levels) -> tuple[list[Plan], Rows]:
    """Trials gathered by plan and fidelity, in the order in which they first appear."""
    losses: dict[tuple[str, float], list[float]] = {}
    plans: dict[tuple[str, float], Plan] = {}
    for trial in trials:
        key = (trial.plan.key, trial.fidelity)
        plans.setdefault(key, trial.plan)
        losses.setdefault(key, []).append(trial.loss)
    b, r = space.encode_many(plans.values())
    fidelity = np.array([f for _, f in plans])
    mean = np.array([float(np.mean(v)) for v in losses.values()])
    weight = np.array([len(v) for v in losses.values()], float) * np.minimum(fidelity, 1.0)
    return list(plans.values()), Rows(b, r, levels.index(fidelity), mean, weight)
