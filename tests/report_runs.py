"""Runs for the tests of reports: small, with names that would break a page that does not escape them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qra_search import (
    Evaluation,
    EvaluationFailed,
    Evaluator,
    Group,
    Linear,
    Plan,
    SearchSpace,
    Sensitivities,
    Study,
)
from qra_search.app.config import make_config
from qra_search.app.folder import RunFolder
from qra_search.log.state import StudyState
from qra_search.schemas import Proposal, TuningRecord
from qra_search.space.serialization import write_sensitivities
from qra_search.strategies import Strategy
from qra_search.strategies.simple import RandomStrategy

EVIL = "</script><script>alert(1)</script>'\"&<img src=x onerror=alert(2)>"


class Guessing(RandomStrategy):
    """Random plans with a prediction each; every fifth is confirmed with another seed."""

    name = "guessing"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        if len(state.trials) % 5 == 4:
            plan = state.full[-1].plan
            return [Proposal(plan, seed=state.seed + len(state.trials), origin=f"confirm {EVIL}")]
        return [replace(p, origin="guess", predicted_loss=2.0) for p in super().propose(state, 1)]


class Bits(Evaluator):
    """Loss falls with bits and rank, and is higher where all bits are the same; plans that begin with 8 bits fail."""

    def __init__(self, space: SearchSpace, name: str = "bits"):
        self.space, self.name = space, name

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        if plan.bits[0] == 8 and len(set(plan.bits)) > 1:
            raise EvaluationFailed(f"out of memory {EVIL}")
        widths = self.space.widths[self.space.encode(plan)[0]].tolist()
        loss = 1 + sum(2.0**-b for b in widths) / len(widths) - sum(plan.ranks) / 1e4 + seed / 1e3
        loss += 0.5 if len(set(plan.bits)) == 1 else 0.0
        return Evaluation(loss, self.space.memory_bytes(plan), seconds=1.0, fidelity=fidelity, seed=seed)

    def sensitivities(self) -> Sensitivities:
        groups = np.arange(1.0, len(self.space) + 1)[:, None]
        return Sensitivities(
            groups * [[0.1, 0.05, 0.01, 0.0]], groups * [[0.0, 0.01, 0.02]], cost=1.5, seconds=3.0
        )

    def describe(self) -> dict[str, str]:
        return {"model": f"model {EVIL}", "task": self.name}


def evil_space(layers: int = 3, *, kinds: bool = True) -> SearchSpace:
    groups = [
        Group(
            name=f"{layer}.{kind}",
            linears=(Linear(name=f"{layer}.{kind}", out_features=32, in_features=64),),
            kind=kind if kinds else "",
            depth=layer if kinds else None,
        )
        for layer in range(layers)
        for kind in (f"q{EVIL}", "v")
    ]
    return SearchSpace(groups=tuple(groups), bits=(2, 3, 4, 8), ranks=(0, 4, 8), fixed_bytes=100)


def make_run(
    path: Path,
    *,
    evaluations: float | None = 30,
    memory: tuple[str, ...] = ("uniform3r4",),
    space: SearchSpace | None = None,
    strategy: Strategy | None = None,
) -> RunFolder:
    """A run in a folder, as the command leaves it; with `evaluations=None` as `qra plan` does."""
    folder = RunFolder(path)
    settings = {"evaluator": "landscape", "options": {"note": EVIL}, "search": {"memory": list(memory)}}
    with folder.begin(make_config(settings)):
        folder.write_config(make_config(settings))
    evaluator = Bits(space or evil_space())
    if evaluations is None:
        write_sensitivities(folder.sensitivities_file, evaluator.space, evaluator.sensitivities(), {})
        return folder
    study = Study(
        evaluator,
        strategy=strategy or Guessing(),
        evaluations=evaluations,
        memory_budget=list(memory) or None,
        log=folder.log_file,
    )
    result = study.run()
    study.log.close()
    result.write(folder.path)
    return folder


def add_tunings(folder: RunFolder, *, seeds: int = 2, rows: int = 1, **of_plan: Any) -> None:
    """Records of the run's plan and two uniform plans, whose losses are 1, 1.1 and 1.2, and a hundredth more a seed.

    Args:
        of_plan: further fields of the plan's records.
    """
    space, plan = folder.read().result.space, folder.read().require_plan()
    plans = [plan] + [Plan((bits,) * len(space), (4,) * len(space)) for bits in (2, 3)]
    for i, tuned in enumerate(plans):
        for seed in range(seeds):
            loss = 1 + i / 10 + seed / 100
            nats = tuple(2 * loss + (row % 2) / 10 for row in range(rows)) if rows > 1 else (loss,)
            record = TuningRecord(
                tuned,
                seed,
                9,
                space.memory_bytes(tuned),
                2.0,
                nats,
                (2 if rows > 1 else 1,) * rows,
                {"exact_match": (0.5 - i / 10,)},
                finished_at=i + seed / 10,
                **(of_plan if tuned == plan else {}),
            )
            tuning = folder.tuning(record.id)
            tuning.path.mkdir(parents=True)
            tuning.write(record)
            if tuned == plan and seed == 0:
                folder.select(record, max(folder.read().result.memory_budgets, default=0))
