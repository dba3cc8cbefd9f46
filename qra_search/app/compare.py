"""A plan beside its baselines on test rows: computed from tuning records whenever it is shown, and stored nowhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, ClassVar, Literal

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.app.baselines import is_shuffled
from qra_search.app.intervals import (
    Interval,
    bootstrap_log_ratio,
    score_interval,
    seeds_half_width,
    standard_error,
)
from qra_search.app.shown import Shown
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.candidates import LossChange

Role = Literal["plan", "uniform", "shuffled", "16-bit", "untuned", "other"]


@dataclass(frozen=True)
class TunedPlan(TuningRecord):
    """One plan over all seeds that it was tuned with: rows and scores are means, `seconds` the sum; one seed that
    diverged, or does not load back, tells in `failed` or `reload_error`."""

    role: Role = "other"
    records: tuple[TuningRecord, ...] = field(default=(), repr=False)

    @classmethod
    def from_seeds(cls, role: Role, records: Sequence[TuningRecord]) -> TunedPlan:
        """The records of one plan and several seeds as one."""
        records = tuple(sorted(records, key=lambda record: record.seed))
        first = records[0]
        shared = [name for name in first.row_scores if all(name in record.row_scores for record in records)]
        scores = {name: _average_rows([record.row_scores[name] for record in records]) for name in shared}
        merged: dict[str, Any] = {f.name: getattr(first, f.name) for f in fields(TuningRecord)}
        for name in ("samples", "failed", "reload_error"):
            merged[name] = next(
                (value for record in records if (value := getattr(record, name))), merged[name]
            )
        merged |= {"seconds": sum(record.seconds for record in records), "row_scores": scores}
        merged["row_nats"] = _average_rows([record.row_nats for record in records])
        return cls(**merged, role=role, records=records)

    @property
    def loss(self) -> float:
        """Mean test loss over the seeds."""
        return self.test_loss

    @property
    def loss_error(self) -> float:
        """Standard error of the mean over the seeds; nan for a single one."""
        return (
            standard_error([record.test_loss for record in self.records])
            if math.isfinite(self.loss)
            else math.nan
        )

    def metric_interval(self, name: str) -> Interval | None:
        """95% interval of a metric over its rows; None with too few."""
        return score_interval(self.row_scores[name])


def compare_losses(tuned: TunedPlan, other: TunedPlan) -> LossChange | None:
    """The change of one test loss against another; None if one of them diverged.

    The interval is that of paired rows, widened by the spread over seeds if there are several; by that spread alone if
    the rows differ. It is taken of the ratio's logarithm, so that it stays above -100%.
    """
    loss, other_loss = tuned.loss, other.loss
    if not (math.isfinite(loss) and math.isfinite(other_loss) and other_loss):
        return None
    share = (loss - other_loss) / abs(other_loss)
    if min(loss, other_loss) <= 0:
        return LossChange(share)
    seeds = seeds_half_width(*([record.test_loss / t.loss for record in t.records] for t in (tuned, other)))
    middle = math.log(loss / other_loss)
    same_rows = tuned.row_tokens == other.row_tokens
    rows = bootstrap_log_ratio(tuned.row_nats, other.row_nats) if same_rows else None
    if rows is None and not math.isfinite(seeds):
        return LossChange(share)
    low, high = rows or (middle, middle)
    if math.isfinite(seeds):
        low, high = middle - math.hypot(middle - low, seeds), middle + math.hypot(high - middle, seeds)
    return LossChange(share, (math.expm1(low), math.expm1(high)))


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """A tuned plan and all that was tuned alike: other plans within the budget, 16-bit LoRA, and the untuned model.

    Attributes:
        budget_bytes: that plans keep to, but for the last two; never less than the plan's own bytes.
        tunings: cheapest first.
        sensitivities: that predict the next uniform plan above the budget; None: its loss is not predicted.
        is_of_another: whether another plan was tuned than that of the run, which is not tuned yet.
    """

    shown_by = "render_comparison"
    data: ClassVar[str] = "test"
    space: SearchSpace
    budget_bytes: int
    tunings: tuple[TunedPlan, ...]
    sensitivities: Sensitivities | None = None
    is_of_another: bool = False

    def find_role(self, role: str) -> TunedPlan | None:
        """The tuning of lowest test loss in a role; None if there is none. A uniform plan is a baseline of itself."""
        if role == "uniform":
            return self.baseline
        return min((t for t in self.tunings if t.role == role), key=lambda t: t.loss, default=None)

    @property
    def chosen(self) -> TunedPlan:
        """The plan that the others are compared with."""
        return next(t for t in self.tunings if t.role == "plan")

    @property
    def baseline(self) -> TunedPlan | None:
        """The best uniform plan within the budget, tuned with as many seeds if one was; a uniform plan is its own."""
        uniform = [t for t in self.tunings if t.role == "uniform" and math.isfinite(t.loss)]
        if self.space.uniform_choice(self.chosen.plan) is not None:
            uniform.append(self.chosen)
        as_many = [t for t in uniform if len(t.records) >= len(self.chosen.records)]
        return min(as_many or uniform, key=lambda t: t.loss, default=None)

    @property
    def change(self) -> LossChange | None:
        """The plan's test loss against the baseline's; None without one."""
        baseline = self.baseline
        return None if baseline is None or baseline is self.chosen else compare_losses(self.chosen, baseline)

    @property
    def metric_names(self) -> list[str]:
        """Metrics of the plan and of all beside it; the untuned model, and what diverged, may lack some."""
        whole = [t for t in self.tunings if not t.failed and t.role != "untuned"]
        return [name for name in self.chosen.metrics if all(name in t.metrics for t in whole)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"budget_bytes": self.budget_bytes, "tunings": [_to_plain_dict(t, self) for t in self.tunings]}

    def __str__(self) -> str:
        return str(import_module("qra_search.app.report.table").render_text(self))

    def __repr__(self) -> str:
        return f"Comparison({len(self.tunings)} plans, test loss {self.chosen.loss:.4g})"


def compare(
    records: Sequence[TuningRecord],
    space: SearchSpace,
    plan: Plan,
    budget_bytes: int,
    settings: Mapping[str, Any] | None = None,
    sensitivities: Sensitivities | None = None,
) -> Comparison | None:
    """The comparison of a plan with what was tuned alike; None if the plan was not tuned.

    Args:
        budget_bytes: that other plans keep to; at least the plan's own bytes count.
        settings: of the tunings; default: those of the plan's last record.
        sensitivities: as of `Comparison`.
    """
    own = [record for record in records if record.plan == plan and not record.is_untuned]
    if settings is None:
        settings = max(own, key=lambda record: record.finished_at).settings if own else {}
    own = [record for record in own if record.settings == settings]
    if not own:
        return None
    budget_bytes = max(budget_bytes, own[0].memory_bytes)
    by_plan: dict[tuple[Plan, bool], list[TuningRecord]] = {}
    for record in records:
        if record.settings == settings:
            by_plan.setdefault((record.plan, record.is_untuned), []).append(record)
    tunings = []
    for same in by_plan.values():
        role = classify_record(same[0], space, plan)
        if role == "uniform" and _is_unquantized(same[0].plan) and same[0].memory_bytes > budget_bytes:
            role = "16-bit"  # a width of the space, too
        if role in ("16-bit", "untuned") or same[0].memory_bytes <= budget_bytes:
            tunings.append(TunedPlan.from_seeds(role, same))
    tunings.sort(key=lambda t: (t.memory_bytes, t.loss))
    return Comparison(space, budget_bytes, tuple(tunings), sensitivities)


def select_tuned_plan(records: Sequence[TuningRecord], space: SearchSpace, plan: Plan | None) -> Plan | None:
    """The plan that a run's records are about: its own if that was tuned, else the last that is no baseline of it, else
    the last uniform one; None if nothing was tuned."""
    roles = {record.plan: classify_record(record, space, plan) for record in records if not record.is_untuned}
    found = [tuned for role in ("uniform", "other", "plan") for tuned, own in roles.items() if own == role]
    return found[-1] if found else None


def classify_record(record: TuningRecord, space: SearchSpace, plan: Plan | None) -> Role:
    """What a record is beside a plan."""
    if record.is_untuned:
        return "untuned"
    if record.plan == plan:
        return "plan"
    if space.contains(record.plan) and space.uniform_choice(record.plan) is not None:
        return "uniform"
    if _is_unquantized(record.plan):
        return "16-bit"
    return "shuffled" if plan is not None and is_shuffled(space, plan, record.plan) else "other"


def _is_unquantized(plan: Plan) -> bool:
    return set(plan.bits) == {UNQUANTIZED_BITS}


def _average_rows(rows_by_seed: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Figures by row, the mean over seeds; empty if they are not of the same rows."""
    if len({len(rows) for rows in rows_by_seed}) != 1:
        return ()
    return tuple(sum(row) / len(rows_by_seed) for row in zip(*rows_by_seed, strict=True))


def _to_plain_dict(tuned: TunedPlan, comparison: Comparison) -> dict[str, Any]:
    change = None if tuned is comparison.chosen else compare_losses(comparison.chosen, tuned)
    interval = {name: tuned.metric_interval(name) for name in tuned.metrics}
    return {
        "role": tuned.role,
        "ids": [record.id for record in tuned.records],
        "plan": tuned.plan.to_dict(),
        "memory_bytes": tuned.memory_bytes,
        "seeds": [record.seed for record in tuned.records],
        "test_loss": tuned.loss if math.isfinite(tuned.loss) else None,
        "loss_change": None if change is None else {"share": change.share, "interval": change.interval},
        "metrics": {
            name: {"mean": mean, "interval": interval[name], "rows": len(tuned.row_scores[name])}
            for name, mean in tuned.metrics.items()
        },
        "seconds": tuned.seconds,
        **{name: text for name in ("failed", "reload_error") if (text := getattr(tuned, name))},
    }
