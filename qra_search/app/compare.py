"""A plan beside its baselines on test rows: how it compares, computed whenever it is shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Literal

from qra_search.app.intervals import (
    Interval,
    bootstrap_log_ratio,
    compute_mean_interval,
    compute_score_interval,
    compute_seeds_half_width,
    compute_standard_error,
    widen_by_seeds,
)
from qra_search.schemas import Plan, TuningRecord
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import SearchSpace
from qra_search.study.result import LossChange

Role = Literal["plan", "uniform", "shuffled", "16-bit", "untuned", "other"]
TOLERANCE_POINTS, TOLERANCE_LOSS = 0.5, 2.0
"""What a smaller model may be worse by and still be deployed: points of a metric, or percent of a loss."""


@dataclass(frozen=True)
class TunedPlan:
    """One plan over all seeds that it was tuned with: rows and scores are means, `seconds` the sum; `failed` tells that
    one seed diverged. Records are ascending by seed.
    """

    role: Role
    records: tuple[TuningRecord, ...] = field(repr=False)

    @property
    def plan(self) -> Plan:
        return self.records[0].plan

    @property
    def memory_bytes(self) -> int:
        return self.records[0].memory_bytes

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records)

    @property
    def loss(self) -> float:
        """Mean test loss over the seeds; inf if one of them diverged."""
        return sum(record.test_loss for record in self.records) / len(self.records)

    @property
    def loss_error(self) -> float:
        """Standard error of the mean over the seeds; nan for a single one."""
        return (
            compute_standard_error(self.list_seed_values("test_loss"))
            if math.isfinite(self.loss)
            else math.nan
        )

    @cached_property
    def row_nats(self) -> tuple[float, ...]:
        return _average_rows([record.row_nats for record in self.records])

    @cached_property
    def row_scores(self) -> dict[str, tuple[float, ...]]:
        """Scores of each row by metric, of those that all seeds have."""
        shared = [
            name for name in self.records[0].row_scores if all(name in r.row_scores for r in self.records)
        ]
        return {name: _average_rows([record.row_scores[name] for record in self.records]) for name in shared}

    @property
    def metrics(self) -> dict[str, float]:
        """Mean score of each metric."""
        return {name: sum(scores) / len(scores) for name, scores in self.row_scores.items() if scores}

    @property
    def samples(self) -> Sequence[Mapping[str, str]]:
        return next((record.samples for record in self.records if record.samples), ())

    @property
    def failed(self) -> str:
        return next(filter(None, (record.failed for record in self.records)), "")

    def list_seed_values(self, name: str) -> list[float]:
        """A metric, or `test_loss`, of every seed."""
        return [r.test_loss if name == "test_loss" else r.metrics[name] for r in self.records]

    def compute_metric_interval(self, name: str) -> Interval | None:
        """95% interval of a metric over its rows and seeds; None with too few rows."""
        scores = self.row_scores[name]
        interval = compute_score_interval(scores)
        if interval is None:
            return None
        low, high = widen_by_seeds(
            interval, self.metrics[name], compute_seeds_half_width(self.list_seed_values(name))
        )
        is_share = min(scores) >= 0 and max(scores) <= 1
        return (max(0.0, low), min(1.0, high)) if is_share else (low, high)

    def to_dict(self, reference: TunedPlan) -> dict[str, Any]:
        """Plain data, for JSON, with the change of its loss against that of a reference."""
        change = None if self is reference else compare_losses(self, reference)
        data = {
            "role": self.role,
            "ids": [record.id for record in self.records],
            "plan": self.plan.to_dict(),
            "memory_bytes": self.memory_bytes,
            "seeds": [record.seed for record in self.records],
            "test_loss": self.loss if math.isfinite(self.loss) else None,
            "loss_change": None if change is None else asdict(change),
            "metrics": {
                name: {
                    "mean": mean,
                    "interval": self.compute_metric_interval(name),
                    "rows": len(self.row_scores[name]),
                }
                for name, mean in self.metrics.items()
            },
            "seconds": self.seconds,
        }
        return data | {"failed": self.failed} if self.failed else data


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
    seeds = compute_seeds_half_width(
        *([record.test_loss / t.loss for record in t.records] for t in (tuned, other))
    )
    same_rows = tuned.records[0].row_tokens == other.records[0].row_tokens
    rows = bootstrap_log_ratio(tuned.row_nats, other.row_nats) if same_rows else None
    if rows is None and not math.isfinite(seeds):
        return LossChange(share)
    middle = math.log(loss / other_loss)
    low, high = widen_by_seeds(rows or (middle, middle), middle, seeds)
    return LossChange(share, (math.expm1(low), math.expm1(high)))


def compare_scores(tuned: TunedPlan, other: TunedPlan, name: str) -> tuple[float, Interval | None]:
    """The difference of a metric over the rows that both answered, and its 95% interval over rows and seeds; None with
    too few rows."""
    rows = zip(tuned.row_scores[name], other.row_scores[name], strict=False)
    gains = [own - others for own, others in rows]
    gain, interval = sum(gains) / len(gains), compute_mean_interval(gains)
    if interval is None:
        return gain, None
    return gain, widen_by_seeds(
        interval, gain, compute_seeds_half_width(tuned.list_seed_values(name), other.list_seed_values(name))
    )


def measure_lead(tuned: TunedPlan, other: TunedPlan, metric: str) -> tuple[float, Interval | None]:
    """How much better one is than another, and the 95% interval: in units of a metric, or, without one, as a share of
    the other's loss; nan if one of them diverged."""
    if metric:
        return compare_scores(tuned, other, metric)
    change = compare_losses(tuned, other)
    if change is None:
        return math.nan, None
    return -change.share, change.interval and (-change.interval[1], -change.interval[0])


def is_as_good(tuned: TunedPlan, best: TunedPlan, metric: str, tolerance: float | None = None) -> bool:
    """Whether one is worse than the best by no more than the tolerance, or by chance: of a metric as well as of the
    loss, which differs for certain where a metric of few rows does not.

    Args:
        metric: that both are judged by; empty: the loss.
        tolerance: in points of a metric whose scores lie between 0 and 1, else in percent; None: the default.
    """
    if tuned is best:
        return True
    lead, interval = measure_lead(tuned, best, metric)
    scores = best.row_scores[metric] if metric else ()
    is_share = all(0 <= score <= 1 for score in scores)
    allowed = (
        (TOLERANCE_POINTS if metric and is_share else TOLERANCE_LOSS) if tolerance is None else tolerance
    )
    scale = 1.0 if is_share else abs(best.metrics[metric])
    if lead >= -allowed / 100 * scale:
        return True
    may_be_chance = interval is not None and interval[1] >= 0
    return may_be_chance and (not metric or is_as_good(tuned, best, ""))


def list_deployable(tunings: Iterable[TunedPlan]) -> list[TunedPlan]:
    """What can be deployed within the budget: not the untuned model, 16-bit LoRA, and what diverged."""
    roles = ("plan", "uniform", "shuffled", "other")
    return [t for t in tunings if t.role in roles and any(t.plan.ranks) and math.isfinite(t.loss)]


def find_best(tunings: Sequence[TunedPlan], metric: str) -> TunedPlan:
    """That of the highest metric, or, without one or of equal ones, of the lowest loss."""
    return max(tunings, key=lambda t: (t.metrics[metric] if metric else 0.0, -t.loss))


@dataclass(frozen=True, repr=False)
class Comparison:
    """A tuned plan and all that was tuned alike: other plans within the budget, 16-bit LoRA, and the untuned model.

    Attributes:
        budget_bytes: that plans keep to, but for the last two; never less than the plan's own bytes.
        tunings: cheapest first.
        is_selected: whether it is what its run shows, exports and loads.
        is_of_another: whether the run's plan is another, which is not tuned yet.
        tolerance: as `is_as_good` takes it.
        is_named: whether the user named the plan as what is to be deployed.
    """

    data: ClassVar[str] = "test"
    space: SearchSpace
    budget_bytes: int
    tunings: tuple[TunedPlan, ...]
    is_selected: bool = False
    is_of_another: bool = False
    tolerance: float | None = None
    is_named: bool = False

    @property
    def deployed(self) -> TunedPlan | None:
        """What to deploy: the plan if the user named it, else the smallest of what can be deployed that is as good as
        the best of it (`is_as_good`); None if nothing can be.

        Of several of one size the plan comes first, then the one of lowest loss.
        """
        found, metric = list_deployable(self.tunings), self.judging_metric
        if self.is_named or not found:
            return self.chosen if self.is_named else None
        best = find_best(found, metric)
        good = (t for t in found if is_as_good(t, best, metric, self.tolerance))
        return min(good, key=lambda t: (t.memory_bytes, t.role != "plan", t.loss))

    @property
    def deployed_ids(self) -> list[str]:
        """Tunings of what to deploy, one a seed; none if nothing can be."""
        return [] if self.deployed is None else [record.id for record in self.deployed.records]

    @property
    def judging_metric(self) -> str:
        """The first metric by which something tuned beats a constant answer; empty if none is: the loss judges."""
        names = (name for name in self.metric_names if not name.endswith("_loss"))
        return next((name for name in names if name not in self.unbeaten_commonest_scores), "")

    @property
    def unbeaten_commonest_scores(self) -> dict[str, float]:
        """Scores of the most common answer, given to every row, by the metrics of which nothing tuned is certainly
        better."""
        tuned = [t for t in self.tunings if t.role != "untuned" and not t.failed]
        found = {}
        for name, least in self.chosen.records[0].commonest_scores.items():
            scored = [t for t in tuned if name in t.metrics]
            lows = [(t.compute_metric_interval(name) or (t.metrics[name],))[0] for t in scored]
            if lows and max(lows) <= least:
                found[name] = least
        return found

    def find_by_role(self, role: str) -> TunedPlan | None:
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
        deployed = None if self.deployed is None else self.deployed.records[0].id
        shown = {"budget_bytes": self.budget_bytes, "selected": self.is_selected, "deployed": deployed}
        return {**shown, "tunings": [tuned.to_dict(self.baseline or self.chosen) for tuned in self.tunings]}

    def __str__(self) -> str:
        """The table, as the command prints it."""
        tables = import_module("qra_search.app.report.tables")  # which stands above this module
        return str(tables.print_to_text(tables.render_comparison(self)))

    def __repr__(self) -> str:
        return f"Comparison({len(self.tunings)} plans, test loss {self.chosen.loss:.4g})"


def compare(
    records: Sequence[TuningRecord],
    space: SearchSpace,
    plan: Plan,
    budget_bytes: int,
    settings: Mapping[str, Any],
) -> Comparison | None:
    """The comparison of a plan with what was tuned alike; None if the plan was not tuned with these settings."""
    by_plan: dict[tuple[Plan, bool], list[TuningRecord]] = {}
    for record in records:
        if record.settings == settings:
            by_plan.setdefault((record.plan, record.is_untuned), []).append(record)
    if (plan, False) not in by_plan:
        return None
    budget_bytes = max(budget_bytes, by_plan[plan, False][0].memory_bytes)
    tunings = []
    for same in by_plan.values():
        role = classify_record(same[0], space, plan)
        if role == "uniform" and _is_unquantized(same[0].plan) and same[0].memory_bytes > budget_bytes:
            role = "16-bit"  # a width of the space, too
        if role in ("16-bit", "untuned") or same[0].memory_bytes <= budget_bytes:
            tunings.append(TunedPlan(role, tuple(sorted(same, key=lambda record: record.seed))))
    tunings.sort(key=lambda t: (t.memory_bytes, t.loss))
    return Comparison(space, budget_bytes, tuple(tunings))


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
    choices = plan and count_choices_by_shape(space, plan)
    return "shuffled" if choices == count_choices_by_shape(space, record.plan) else "other"


def _is_unquantized(plan: Plan) -> bool:
    return set(plan.bits) == {UNQUANTIZED_BITS}


def _average_rows(rows_by_seed: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Figures by row, the mean over seeds; empty if they are not of the same rows."""
    if len({len(rows) for rows in rows_by_seed}) != 1:
        return ()
    return tuple(sum(row) / len(rows_by_seed) for row in zip(*rows_by_seed, strict=True))


def group_by_shape(space: SearchSpace) -> list[Sequence[int]]:
    """Indices of the groups, together where shapes and allowed choices are the same."""
    alike: dict[object, list[int]] = {}
    for i, group in enumerate(space.groups):
        shapes = tuple(sorted((m.out_features, m.in_features) for m in group.linears))
        alike.setdefault((shapes, group.bits, group.ranks, group.is_embedding), []).append(i)
    return list(alike.values())


def count_choices_by_shape(space: SearchSpace, plan: Plan) -> list[Counter[tuple[object, int]]]:
    return [Counter((plan.bits[i], plan.ranks[i]) for i in alike) for alike in group_by_shape(space)]
