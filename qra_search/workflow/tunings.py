"""What a run tunes in full: a plan and its baselines, and the settings of their tunings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_search.config import RunConfig, differences, make_config
from qra_search.errors import BadInput, bad_input
from qra_search.evaluation.evaluator import NO_ADAPTER
from qra_search.runs.baselines import Against, select_baselines
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import resolve_budget, uniform_in
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import read_plan
from qra_search.space.space import Plan


@dataclass(frozen=True)
class Tunings:
    """What is to be tuned: a plan and its baselines, each once with each seed.

    Attributes:
        budget_bytes: that the plan and its baselines keep to.
        others: baselines, and 16-bit LoRA if it is asked for.
    """

    plan: Plan
    others: tuple[Plan, ...]
    budget_bytes: int
    seeds: tuple[int, ...] = (0,)

    @property
    def plans(self) -> list[Plan]:
        """The plan first, each plan once."""
        return list(dict.fromkeys((self.plan, *self.others)))

    def __len__(self) -> int:
        return len(self.plans) * len(self.seeds)

    def __iter__(self) -> Iterator[tuple[int, Plan]]:
        return itertools.product(self.seeds, self.plans)


def select_plan(folder: RunFolder, memory: int | str | None = None) -> Plan:
    """The plan of a run, or the best within a budget.

    Raises:
        BudgetTooSmall: no plan of the space fits the budget.
        BadInput: nothing that fits was evaluated, or the run has no plan yet.
    """
    if memory is None:
        return folder.plan()
    result = folder.result()
    plan = result.chosen(resolve_budget(result.space, memory))
    if plan is None:
        raise BadInput(f"no plan of {folder.path} fits {memory}: search with this budget first")
    return plan


def select_tunings(
    folder: RunFolder,
    plan: Plan | str | Path | None = None,
    memory: int | str | None = None,
    *,
    seeds: int = 1,
    against: Against = "best",
    with_16_bit: bool = False,
) -> Tunings:
    """What `Run.finetune` tunes: a plan, its baselines, and 16-bit LoRA if it is asked for.

    Their budget is `memory`, or the run's largest, or the plan's own bytes if these are more.

    Raises:
        BadInput: the plan has no adapter or cannot be shuffled, or no plan fits the budget.
    """
    if plan is not None and memory is not None:
        raise BadInput("--plan and --memory both choose a plan: give one of them")
    result = folder.check().result()
    space = result.space
    with bad_input():
        if plan is None:
            plan = select_plan(folder, memory)
        elif not isinstance(plan, Plan):
            plan = uniform_in(space, str(plan)) or read_plan(space, Path(plan))
    if not any(plan.ranks):
        raise BadInput(NO_ADAPTER)
    if memory is not None:
        budget_bytes = resolve_budget(space, memory)
    else:
        budget_bytes = max([*result.memory_budgets[-1:], space.memory_bytes(plan)])
    others = select_baselines(space, plan, budget_bytes, against, result)
    sixteen = space.unquantized.uniform(UNQUANTIZED_BITS, space.ranks[-1]) if with_16_bit else None
    return Tunings(plan, (*others, *([sixteen] if sixteen else [])), budget_bytes, tuple(range(seeds)))


def change_settings(
    known: RunConfig,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The settings of a run with those that `Run.finetune` is given, which win.

    Raises:
        BadInput: one that no tuning of its plan can be given.
    """
    if steps is not None and epochs is not None:
        raise BadInput("--steps and --epochs both say how long to tune: give one of them")
    given = dict(settings or {})
    if steps is not None:
        given |= {"finetune.steps": steps, "finetune.epochs": None}
    given |= {k: v for k, v in {"finetune.epochs": epochs, "model.device": device}.items() if v is not None}
    config = make_config(known.model_dump(mode="json"), given, source="options")
    for path, (old, _) in differences(known, config).items():
        section = path.partition(".")[0]
        if path == "evaluation.validation_rows":  # those of finetune.evaluate_every too
            continue
        if section == "evaluation":
            raise BadInput(f"{path} is of a search's short tunings: set the length of a full one with finetune.steps")
        if section not in ("training", "finetune") and path != "model.device":
            raise BadInput(
                f"{path} is {old!r} in this run: only fields of training and finetune can be set anew to tune its plan"
            )
    return config
