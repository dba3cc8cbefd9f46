"""What a run tunes in full, a plan and its baselines, and with which settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qra_search.app.compare import Against, select_baselines
from qra_search.app.config import RunConfig, find_differences, make_config
from qra_search.app.folder import RunFolder, Snapshot, read_plan_data
from qra_search.errors import BadInput, convert_to_bad_input
from qra_search.evaluation.evaluator import NO_ADAPTER
from qra_search.space.budgets import parse_uniform, resolve_budget
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import plan_from_dict
from qra_search.space.space import Plan

TUNABLE = ("training.", "finetune.", "model.device", "evaluation.validation_rows")
"""Fields that may be set anew to tune a run's plan; `finetune.evaluate_every` looks at the validation rows."""


@dataclass(frozen=True)
class Tunings:
    """What is to be tuned in a run, each plan with each seed.

    Attributes:
        run: as it was read.
        plans: the chosen one first, then its baselines, and 16-bit LoRA if it is asked for.
        budget_bytes: that the plan and its baselines keep to.
    """

    run: Snapshot
    plans: tuple[Plan, ...]
    budget_bytes: int
    seeds: tuple[int, ...] = (0,)

    @property
    def folder(self) -> RunFolder:
        return self.run.folder

    @property
    def plan(self) -> Plan:
        return self.plans[0]

    @property
    def first_tuning(self) -> Tunings:
        """The chosen plan with the first seed alone."""
        return replace(self, plans=self.plans[:1], seeds=self.seeds[:1])

    def __len__(self) -> int:
        return len(self.plans) * len(self.seeds)

    def __iter__(self) -> Iterator[tuple[int, Plan]]:
        return itertools.product(self.seeds, self.plans)


def select_tunings(
    run: Snapshot,
    plan: Plan | str | Path | None = None,
    memory: int | str | None = None,
    *,
    seeds: int = 1,
    against: Against = "best",
    with_16_bit: bool = False,
) -> Tunings:
    """What `Run.finetune` tunes: a plan, its baselines, and 16-bit LoRA if it is asked for.

    Their budget is `memory`, or the run's largest, or the plan's own bytes if these are more. Raises BadInput if the
    plan has no adapter or cannot be shuffled, or no plan fits the budget.
    """
    if plan is not None and memory is not None:
        raise BadInput("--plan and --memory both choose a plan: give one of them")
    result, space = run.result, run.result.space
    with convert_to_bad_input():
        limit = None if memory is None else resolve_budget(space, memory)
        if plan is None:
            plan = run.choose_plan(limit)
        elif not isinstance(plan, Plan):
            plan = parse_uniform(space, str(plan)) or plan_from_dict(space, read_plan_data(Path(plan)))
    if not any(plan.ranks):
        raise BadInput(NO_ADAPTER)
    budget_bytes = limit or max([*result.memory_budgets[-1:], space.memory_bytes(plan)])
    plans = [plan, *select_baselines(space, plan, budget_bytes, against, result)]
    if with_16_bit and (unquantized := space.unquantized.uniform(UNQUANTIZED_BITS, space.ranks[-1])):
        plans.append(unquantized)
    return Tunings(run, tuple(dict.fromkeys(plans)), budget_bytes, tuple(range(seeds)))


def change_settings(
    known: RunConfig,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    rates: Sequence[float] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The settings of a run with those that `Run.finetune` is given, which win; raises BadInput for one that
    no tuning of its plan can be given."""
    if steps is not None and epochs is not None:
        raise BadInput("--steps and --epochs both say how long to tune: give one of them")
    named = {
        "finetune.steps": ("--steps", steps),
        "finetune.epochs": ("--epochs", epochs),
        "training.learning_rate": ("--rates", rates),
    }
    changes = dict(settings or {})
    for field, (option, value) in named.items():
        if value is not None and field in changes:
            raise BadInput(f"give {option} or --set {field}, not both")
        if value is not None and option != "--rates":  # of which each is a setting of its own
            changes[field] = value
    if steps is not None:
        changes.setdefault("finetune.epochs", None)
    config = make_config(known.model_dump(mode="json"), changes, source="options")
    for path, (old, _) in find_differences(known, config).items():
        if path.startswith(TUNABLE):
            continue
        if path.startswith("evaluation."):
            raise BadInput(
                f"{path} sets the short fine-tunings of a search: set finetune.steps for a full fine-tuning"
            )
        raise BadInput(
            f"{path} is {old!r} in this run: only fields of training and finetune can be set anew to tune its plan"
        )
    return config
