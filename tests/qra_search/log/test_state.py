"""A log alone is enough to read its search back."""

from __future__ import annotations

from pathlib import Path

import pytest

from qra_search import (
    Evaluation,
    Evaluator,
    Group,
    GroupwiseFormat,
    Level,
    Linear,
    Plan,
    Proposal,
    SearchSpace,
    Study,
    TrialLog,
)
from qra_search.log.journal import LogError
from qra_search.log.state import read_state


def odd_space() -> SearchSpace:
    def group(i: int) -> Group:
        linears = tuple(
            Linear(name=f"layers.{i}.{k}", out_features=32 + k, in_features=100) for k in range(2)
        )
        return Group(name=f"layers.{i}", linears=linears, bits=(3, 16) if i else None, kind="layer", depth=i)

    three = Level(3, 3, format=GroupwiseFormat(3, group_size=50))
    four = Level(4, 4, format=GroupwiseFormat(4, metadata_bits=12))
    return SearchSpace(
        groups=tuple(map(group, range(3))),
        bits=(three, four, 16),
        ranks=(0, 5),
        fixed_bytes=7,
    )


class Squares(Evaluator):
    space = odd_space()

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return Evaluation(
            sum(1 / b for b in plan.bits), self.space.memory_bytes(plan), fidelity=fidelity, seed=seed
        )


def test_the_state_of_a_study_is_read_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    study = Study(Squares(), strategy="random", evaluations=6, memory_budget="uniform16r5", seed=3, log=log)
    study.run()
    with TrialLog(log) as again:
        state = read_state(again)
    assert state.trials == study.state.trials
    assert (state.seed, state.evaluations, state.memory_budgets) == (3, 6.0, study.memory_budgets)
    assert state.space.signature == study.space.signature and state.space.groups == study.space.groups


def test_an_empty_log_has_no_space() -> None:
    with pytest.raises(LogError, match="no search was started"):
        read_state(TrialLog())


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan((2, 3, 3), (5, 5, 5)), "bits 2 is not one of"),
        (Plan((3, 3), (5, 5)), "has 2 groups, the space has 3"),
    ],
)
def test_a_trial_that_cannot_be_of_the_space_is_refused(tmp_path: Path, plan: Plan, says: str) -> None:
    Study(Squares(), strategy="random", evaluations=6, log=tmp_path / "log").run()
    with TrialLog(tmp_path / "log") as log:
        log.finish(log.propose(Proposal(plan)).id, Evaluation(1.0, 1))
        with pytest.raises(LogError, match=says):
            read_state(log)
