"""The result of a search: the front, the best plan within a budget, and its comparison with uniform plans."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from qra_search.allocate.solve import (
    Z_90,
    Allocation,
    build_additive_table,
    compute_table_losses,
    estimate_gain_std,
    solve,
)
from qra_search.files import write_json
from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Trial
from qra_search.space.budgets import resolve_budgets
from qra_search.space.serialization import plan_to_dict, write_sensitivities
from qra_search.strategies import Strategy, average_losses, find_non_dominated


@dataclass(frozen=True)
class EvaluatedPlan:
    """A plan that was evaluated at full fidelity, or one that is predicted to be better.

    Attributes:
        loss: posterior mean of the held-out loss, by the strategy's model if it has one.
        loss_std: its posterior deviation; nan if unknown.
        observed: mean of the observed losses; nan if there are none.
        evaluations: how many there are; 0 if its loss is only predicted.
    """

    plan: Plan
    loss: float
    loss_std: float
    memory_bytes: int
    observed: float
    evaluations: int = 1


@dataclass(frozen=True)
class LossChange:
    """A loss against another, as a share of it: -0.1 is 10% lower; its interval is at 95%, if something tells it."""

    share: float
    interval: tuple[float, float] | None = None

    @property
    def is_lower(self) -> bool:
        return self.share < 0

    @property
    def may_be_chance(self) -> bool:
        return self.interval is not None and self.interval[0] <= 0.0 <= self.interval[1]


@dataclass(frozen=True)
class UniformComparison:
    """The best plan within a budget beside the best uniform plan within it, by estimated validation losses."""

    data: ClassVar[str] = "validation"
    budget_bytes: int
    chosen: EvaluatedPlan
    baseline: EvaluatedPlan | None

    @property
    def change(self) -> LossChange | None:
        """The chosen plan's loss against the baseline's, within two standard errors of the difference; None without
        another plan, or if its loss is zero."""
        one = self.chosen
        two = self.baseline
        if two is None or two.plan == one.plan or not two.loss:
            return None
        share = (one.loss - two.loss) / abs(two.loss)
        noise = math.hypot(one.loss_std, two.loss_std) / abs(two.loss)
        return LossChange(share, (share - 2 * noise, share + 2 * noise) if math.isfinite(noise) else None)


@dataclass(frozen=True, repr=False)
class SearchResult(StudyState):
    """Everything that a search leaves, made from the log alone: the state of the study, and what is known of its plans.

    Attributes:
        candidates: every plan evaluated at full fidelity, cheapest first.
        allocations: by budget, those already solved; `allocation` adds others.
    """

    candidates: tuple[EvaluatedPlan, ...] = ()
    strategy: str = ""
    allocations: dict[int, Allocation] = field(default_factory=dict, compare=False)

    @classmethod
    def from_state(cls, state: StudyState, strategy: Strategy) -> SearchResult:
        beliefs = strategy.estimate(state)
        observed = average_losses(state.full)
        count = Counter(trial.plan for trial in state.full)
        candidates = []
        for plan, mean, std in zip(beliefs.plans, beliefs.mean.tolist(), beliefs.std.tolist(), strict=True):
            size = state.space.memory_bytes(plan)
            candidates.append(EvaluatedPlan(plan, mean, std, size, observed[plan], count[plan]))
        candidates.sort(key=lambda c: (c.memory_bytes, c.loss))
        known = {field.name: getattr(state, field.name) for field in fields(StudyState)}
        return cls(**known, candidates=tuple(candidates), strategy=strategy.name)

    @property
    def front(self) -> list[EvaluatedPlan]:
        """Plans that no other beats in both loss and bytes, cheapest first."""
        losses = [c.loss for c in self.candidates]
        sizes = [c.memory_bytes for c in self.candidates]
        return [self.candidates[i] for i in find_non_dominated(np.array(losses), np.array(sizes))]

    @property
    def uniform(self) -> list[EvaluatedPlan]:
        return [c for c in self.candidates if self.space.uniform_choice(c.plan) is not None]

    def best(self, memory_budget: int | str | None = None) -> EvaluatedPlan | None:
        """The best plan within a budget, such as `search` takes (default: the largest), by the posterior mean of the
        loss; None if nothing that fits was evaluated. The allocated plan takes its place, though it was not evaluated,
        where it is predicted to be better by more than may be chance. Raises BudgetTooSmall.
        """
        limit = self._resolve(memory_budget)
        fitting = [c for c in self.candidates if c.memory_bytes <= limit]
        best = min(fitting, key=lambda c: (c.loss, c.memory_bytes), default=None)
        return None if best is None else self._predict_better(best, limit) or best

    def _predict_better(self, best: EvaluatedPlan, limit: int) -> EvaluatedPlan | None:
        """The plan allocated within so many bytes with its predicted loss, unless it was evaluated, failed, or is not
        predicted to be lower than the best evaluated one by more than may be chance.

        Predicted differences are scaled by the slope of the observed ones over the predicted ones, at most 1; the
        scatter about that slope adds to their deviation.
        """
        allocation = self.allocation(limit)
        plans = [candidate.plan for candidate in self.candidates]
        if allocation is None or allocation.plan in {*plans, *self._failed_plans}:
            return None
        codes = self.space.encode_many([allocation.plan, best.plan, *plans])
        table = build_additive_table(self.space, self.sensitivities)
        own, least, *others = compute_table_losses(table, codes)
        predicted = np.array(others) - least
        true = np.array([candidate.loss for candidate in self.candidates]) - best.loss
        slope = predicted @ true / (predicted @ predicted) if predicted.any() else 1.0
        trust = float(np.clip(slope, 0.0, 1.0))
        gain = trust * float(least - own)
        scatter = float(np.sqrt(np.mean((true - trust * predicted) ** 2)))
        deviation = math.hypot(estimate_gain_std(gain), scatter)
        if gain <= Z_90 * deviation:
            return None
        size = allocation.memory_bytes
        return EvaluatedPlan(allocation.plan, best.loss - gain, deviation, size, math.nan, evaluations=0)

    def find_best_uniform(self, limit: int) -> EvaluatedPlan | None:
        """The evaluated uniform plan of lowest loss within so many bytes; None if none was."""
        return min((c for c in self.uniform if c.memory_bytes <= limit), key=lambda c: c.loss, default=None)

    def comparison(self, memory_budget: int | str | None = None) -> UniformComparison | None:
        """The best plan against the best uniform plan under a budget (default: the largest); None if nothing fits."""
        limit = self._resolve(memory_budget)
        best = self.best(limit)
        return None if best is None else UniformComparison(limit, best, self.find_best_uniform(limit))

    @property
    def comparisons(self) -> list[UniformComparison]:
        """The comparison at every budget, at the size of every plan of the front if the search had none."""
        if self.memory_budgets:
            return [c for b in self.memory_budgets if (c := self.comparison(b)) is not None]
        sizes = [c.memory_bytes for c in self.front]
        best = map(self.find_best_uniform, sizes)
        return list(map(UniformComparison, sizes, self.front, best))

    def allocation(self, memory_budget: int | str | None = None) -> Allocation | None:
        """The allocation within a budget (default: the largest, or else that of the space's largest plan); None without
        sensitivities, or with neither a budget nor an evaluated plan; raises BudgetTooSmall."""
        if self.sensitivities is None or (
            memory_budget is None and not (self.memory_budgets or self.candidates)
        ):
            return None
        limit = self._resolve(memory_budget)
        if limit not in self.allocations:
            self.allocations[limit] = solve(self.space, self.sensitivities, limit)
        return self.allocations[limit]

    def choose_plan(self, memory_budget: int | str | None = None) -> Plan | None:
        """The plan chosen within a budget (default: the largest): the best evaluated one, or, if nothing that
        fits was evaluated, the allocated one; None without either, if that one failed, and if all evaluations did.

        It has no extra parameters: the best rate of short evaluations is not that of a full tuning.
        """
        best = self.best(memory_budget)
        if best is not None:
            return replace(best.plan, extra=())
        allocation = None if not self.candidates and self.failures() else self.allocation(memory_budget)
        failed = allocation is None or allocation.plan in self._failed_plans
        return None if allocation is None or failed else replace(allocation.plan, extra=())

    @property
    def _failed_plans(self) -> set[Plan]:
        return {trial.plan for trial in self.failures()}

    @property
    def ended_trials(self) -> list[Trial]:
        """Trials with a result, failed ones too; the others are running, or were interrupted."""
        return [t for t in self.trials if t.status != "running"]

    def failures(self) -> list[Trial]:
        return [t for t in self.trials if t.status == "failed"]

    def __repr__(self) -> str:
        return f"SearchResult({len(self.trials)} trials by {self.strategy}, front of {len(self.front)})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "spent": self.spent,
            "trials": len(self.trials),
            "failed": [{"trial": t.id, "reason": t.reason} for t in self.failures()],
            "memory_budgets": list(self.memory_budgets),
            "budgets": [
                {
                    "budget": c.budget_bytes,
                    "best": _to_plain_dict(c.chosen),
                    "best_uniform": None if c.baseline is None else _to_plain_dict(c.baseline),
                    "loss_change": None if c.change is None else c.change.share,
                }
                for c in self.comparisons
            ],
            "allocations": [
                a.to_dict() for b in self.memory_budgets if (a := self.allocation(b)) is not None
            ],
            "front": [_to_plain_dict(c) for c in self.front],
            "uniform": [_to_plain_dict(c) for c in self.uniform],
            "candidates": [_to_plain_dict(c) for c in self.candidates],
        }

    def write(self, folder: str | Path, *, evaluator: Mapping[str, Any] | None = None) -> None:
        """Write `sensitivities.json` (if measured) and `plan.json` (the plan chosen) into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.sensitivities is not None:
            write_sensitivities(
                folder / "sensitivities.json", self.space, self.sensitivities, evaluator or {}
            )
        plan = self.choose_plan()
        if plan is not None:
            write_json(folder / "plan.json", plan_to_dict(self.space, plan))

    def _resolve(self, memory_budget: int | str | None) -> int:
        if memory_budget is None:
            return self.largest_budget
        if isinstance(memory_budget, int):
            return self.space.memory.check_budget(memory_budget)
        return resolve_budgets(self.space, memory_budget)[0]


def _to_plain_dict(candidate: EvaluatedPlan) -> dict[str, Any]:
    known = {**vars(candidate), "plan": candidate.plan.to_dict()}
    return known | {name: None for name in ("loss_std", "observed") if not math.isfinite(known[name])}
