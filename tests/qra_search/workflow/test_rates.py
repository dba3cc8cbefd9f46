"""The learning rate of a full tuning, chosen by short ones."""

from __future__ import annotations

from typing import Any

import pytest

from qra_search import BadInput, Plan
from qra_search.config import RunConfig, make_config
from qra_search.errors import RunFailed
from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, RowCount
from qra_search.study.listener import Listener
from qra_search.workflow.rates import choose_rate, read_rates

PLAN = Plan((2, 3), (4, 4))


def choose(losses: dict[float, float], steps: int = 600) -> tuple[RunConfig, list[tuple[float, int]]]:
    """The settings with the chosen rate, and rate and steps of each short tuning; one without a loss fails."""
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
    return choose_rate(build, make_config({"finetune": {"epochs": 1}}), PLAN, list(losses), Listener()), made


def test_the_rate_of_the_lowest_validation_loss_is_taken_after_a_tenth_of_the_steps() -> None:
    config, made = choose({5e-4: 1.2, 1e-3: 1.1, 2e-3: 1.3})
    assert config.training.learning_rate == 1e-3 and config.evaluation.steps == 12
    assert made == [(5e-4, 60), (1e-3, 60), (2e-3, 60)]


def test_short_tunings_are_no_shorter_than_an_evaluation() -> None:
    assert choose({1e-3: 1.0}, steps=30)[1] == [(1e-3, 12)]


def test_a_rate_that_diverges_is_left_out_and_all_of_them_are_an_error() -> None:
    assert choose({1e-3: 1.0, 1.0: 10.0})[0].training.learning_rate == 1e-3
    with pytest.raises(RunFailed, match="cannot be tuned at any of 2 learning rates"):
        choose({1.0: 10.0, 2.0: 10.0})


@pytest.mark.parametrize("text", ["", "1e-3,", "1e-3;2e-3", "0", "-1e-3", "nan", "inf"])
def test_rates_that_are_none_are_refused_in_a_line(text: str) -> None:
    with pytest.raises(BadInput, match="learning rates above 0, separated by commas"):
        read_rates(text)


def test_several_processes_do_not_try_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="without torchrun"):
        choose({1e-3: 1.0})
