"""The learning rate that brief tunings choose."""

from __future__ import annotations

from typing import Any

import pytest

from qra_search import BadInput, Evaluation, EvaluationFailed, Plan
from qra_search.config import RunConfig, make_config
from qra_search.errors import RunFailed
from qra_search.evaluation.evaluator import RowCount
from qra_search.study.listener import Listener
from qra_search.workflow.finetune import choose_rate


def choose(losses: dict[float, float], steps: int = 600) -> tuple[RunConfig, list[tuple[float, int]]]:
    """The settings with the chosen rate, and rate and steps of each short tuning; one of a loss above 9 fails."""
    made: list[tuple[float, int]] = []

    class Short:
        def __init__(self, config: RunConfig):
            self.config = config

        def row_counts(self) -> dict[str, RowCount]:
            return {"train": RowCount(steps * 8, steps * 8)}

        def evaluate(self, plan: Plan) -> Evaluation:
            rate = self.config.training.learning_rate
            made.append((rate, self.config.evaluation.steps))
            if losses[rate] > 9:
                raise EvaluationFailed("diverged")
            return Evaluation(losses[rate], 1)

    build: Any = Short
    config = make_config({"finetune": {"epochs": 1}})
    return choose_rate(build, config, Plan((2, 3), (4, 4)), list(losses), Listener()), made


def test_the_rate_of_the_lowest_validation_loss_is_taken_after_a_tenth_of_the_steps() -> None:
    config, made = choose({5e-4: 1.2, 1e-3: 1.1, 2e-3: 1.3, 1.0: 10.0})
    assert config.training.learning_rate == 1e-3 and config.evaluation.steps == 12
    assert made == [(5e-4, 60), (1e-3, 60), (2e-3, 60), (1.0, 60)]
    assert choose({1e-3: 1.0}, steps=30)[1] == [(1e-3, 12)], "no shorter than an evaluation"


def test_rates_that_all_diverge_and_rates_with_several_processes_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailed, match="cannot be tuned at any of 2 learning rates"):
        choose({1.0: 10.0, 2.0: 10.0})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="without torchrun"):
        choose({1e-3: 1.0})
