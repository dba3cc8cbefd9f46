"""What is known of a run before it starts: its rows, its space, and the cost and possible gain of a search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.solve import Allocation
from qra_search.config import RunConfig
from qra_search.errors import bad_input
from qra_search.evaluation.evaluator import Evaluator, RowCount
from qra_search.report import formatting
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.study.listener import Listener
from qra_search.study.study import uniform_design
from qra_search.workflow.evaluator import build_evaluator, check_tunes
from qra_search.workflow.settings import check_task
from qra_search.workflow.tracking import check_tracker

FEW = 32
"""Rows below which a loss says little of other rows."""
MUCH = 0.25
"""Share of the budget from which on embeddings are worth a hint."""


def forecast_command(
    config: RunConfig, listener: Listener, *, track: Sequence[str] = (), begun: bool = False, tunes: bool = False,
    evaluations: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Build the evaluator, spend nothing, and estimate what a command would do; see `dry_run`.

    Args:
        track: trackers, which have to be installed; none of them is begun.
        begun: the search has begun, and so has a task.
        tunes: a plan is to be tuned in full.
        evaluations: as `dry_run`.
    """
    with bad_input():
        for spec in track:
            check_tracker(spec)
        if not begun:
            check_task(config)
    with listener:
        built = build_evaluator(config, listener.progress, weights=False)
    with closing(built) as evaluator:
        if tunes:
            check_tunes(evaluator, config)
        return dry_run(evaluator, config, evaluations)


def dry_run(evaluator: Evaluator, config: RunConfig, evaluations: float | None = None) -> dict[str, Any]:
    """Facts of a plan or a search that is yet to begin, as plain data.

    Of an evaluator that does not estimate its cost, time and peak memory are unknown until the first evaluation.

    Args:
        evaluations: full evaluations that the command spends, 0 for a plan alone; None: as the config says.

    Raises:
        BadInput: a budget that no plan fits.
    """
    space = evaluator.space
    with bad_input():
        budgets = resolve_budgets(space, list(config.search.memory) or None)
    estimate = dict(evaluator.estimate())
    if "evaluation_seconds" in estimate:
        sensitivities, setup = estimate.get("sensitivities_seconds", 0.0), estimate.get("setup_seconds", 0.0)
        if (charge := evaluator.sensitivities_charge()) is not None:
            estimate["sensitivities_charge"] = charge
        estimate["total_seconds"] = setup + sensitivities + estimate["evaluation_seconds"] * (
            config.search.evaluations if evaluations is None else evaluations
        )
    linears = [group for group in space.groups if not group.is_embedding]
    return {
        "config": config.model_dump(mode="json"),
        "groups": len(space),
        "kinds": dict(Counter(group.kind or "group" for group in space.groups)),
        "linears": sum(len(group.linears) for group in space.groups),
        "weights": space.weights,
        "fixed_bytes": space.fixed_bytes,
        "levels": [b for b in space.bits if any(b in (group.bits or space.bits) for group in linears)],
        "smallest_bytes": space.memory.minimum,
        "largest_bytes": space.memory.maximum,
        "budgets": list(budgets),
        "first": [
            {"bits": choice[0], "rank": choice[1], "memory_bytes": space.memory_bytes(plan)}
            for plan in uniform_design(space, budgets)
            if (choice := space.uniform_choice(plan)) is not None
        ],
        "rows": {name: asdict(count) for name, count in evaluator.row_counts().items()},
        "estimate": estimate,
        "example": [{"text": text, "learnt": learnt} for text, learnt in evaluator.rendered() or ()],
    }


def embeddings_hint(config: RunConfig, fixed: int, budgets: Sequence[int]) -> str | None:
    """A hint where embeddings that are not searched take much of the budget; None elsewhere.

    Args:
        fixed: bytes of all that is not searched.
        budgets: bytes that plans may take.
    """
    offered = config.evaluator == type(config).model_fields["evaluator"].default
    searched = config.quantization.embeddings != (UNQUANTIZED_BITS,)
    if not offered or searched or not budgets or fixed < MUCH * min(budgets):
        return None
    return f"{fixed / min(budgets):.0%} of the budget, mostly embeddings: quantization.embeddings=8 halves them"


@dataclass(frozen=True)
class Costs:
    """What a search takes, estimated before it starts.

    Attributes:
        evaluations: full evaluations of plans that it may spend.
        sensitivities: what measuring them takes, in full evaluations; 0 if they are measured.
        seconds: of a full evaluation; nan if unknown.
    """

    evaluations: float
    sensitivities: float = 0.0
    seconds: float = math.nan

    @property
    def text(self) -> str:
        """In a sentence."""
        count = formatting.evaluations_text(self.evaluations)
        return f"{count} plans tuned briefly{self._time(self.evaluations)}{self.sensitivities_text}"

    @property
    def sensitivities_text(self) -> str:
        """What is measured before the evaluations, and comes on top of them."""
        if not self.sensitivities:
            return ""
        count = formatting.evaluations_text(self.sensitivities)
        return f"; before them the sensitivities, as long as {count} more{self._time(self.sensitivities)}"

    def _time(self, count: float) -> str:
        return f", about {formatting.duration(count * self.seconds)}" if math.isfinite(self.seconds) else ""


def foretold_costs(
    evaluator: Evaluator, evaluations: float, sensitivities: Sensitivities | None = None
) -> Costs | None:
    """What a search of so many evaluations costs; None if that is unknown.

    Args:
        sensitivities: if they are measured already, which then cost nothing.
    """
    charge = evaluator.sensitivities_charge() if sensitivities is None else 0.0
    return None if charge is None else Costs(evaluations, charge, evaluator.evaluation_seconds())


def worth_text(allocation: Allocation | None) -> str:
    """What a search may gain over the allocated plan."""
    best = None if allocation is None else allocation.best_uniform
    if best is not None and best.is_certain:
        return (
            "it checks the prediction, and insures against sensitivities that are wrong; on SmolLM2-135M, tuned to the "
            "end, its plans and these differed by less than 1% (docs/study.md)"
        )
    return "the predicted difference to uniform plans is too small to rely on: a search measures it"


def rows_text(counts: Mapping[str, RowCount]) -> list[str]:
    """Lines about the rows: how many there are, then warnings."""
    if not counts:
        return []
    lines = [", ".join(_count_text(name, count) for name, count in counts.items())]
    few = [f"{count.had} {name}" for name, count in counts.items() if count.had < FEW]
    if few:
        lines.append(f"warning: {' and '.join(few)} rows: fewer than {FEW} say little of others, give more data")
    conflicting = sum(count.conflicting for count in counts.values())
    if conflicting:
        lines.append(f"warning: {conflicting} rows have a prompt that occurs again with another answer: check the data")
    cut = sum(count.cut for count in counts.values())
    if cut:
        had, longest = sum(count.had for count in counts.values()), max(count.longest for count in counts.values())
        lines.append(
            f"{cut} of {had} rows are cut to training.max_length, the longest has {longest} tokens: "
            f"--set training.max_length={longest} keeps them whole"
        )
    return lines


def say_rows(evaluator: Evaluator, listener: Listener) -> None:
    """Say how many rows there are if they are fewer than asked for or are cut; nothing if all is as asked."""
    counts = evaluator.row_counts()
    lines = rows_text(counts)
    if len(lines) > 1 or any(count.had < count.asked for count in counts.values()):
        for line in lines:
            listener.say(line if line.startswith("warning") else f"rows: {line}")


def rows_of_test(evaluator: Evaluator, config: RunConfig) -> int:
    """The rows that a comparison on test data is truly of."""
    counts = evaluator.row_counts()
    return counts["test"].had if "test" in counts else config.finetune.test_rows


def _count_text(name: str, count: RowCount) -> str:
    asked = f" ({count.asked} asked for)" if count.had < count.asked else ""
    return f"{count.had} {name}{asked}"
