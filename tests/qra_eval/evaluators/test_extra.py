"""The real evaluator takes a plan's learning rate and length, and a search chooses them with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluators import make_evaluator

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search import Run
from qra_search.app.config import make_config
from qra_search.errors import BadInput

SECTIONS: dict[str, Any] = {
    "quantization": {"backend": "reference", "embeddings": 16},
    "space": {"bits": (2, 4), "ranks": (4, 8)},
    "training": {"batch_size": 4, "learning_rate": 0.002},
    "evaluation": {"steps": 4, "validation_rows": 8},
    "finetune": {"steps": 2, "test_rows": 8, "sample_answers": 0, "scored_rows": 0},
}
SEARCHED = {**SECTIONS["space"], "learning_rates": (0.016, 0.004), "lengths": (0.5,)}


@pytest.fixture(scope="module")
def evaluator() -> QuantizedLoRAEvaluator:
    return make_evaluator(**{**SECTIONS, "space": SEARCHED})


def test_the_settings_own_rate_and_length_are_among_the_choices(evaluator: QuantizedLoRAEvaluator) -> None:
    rate, length = evaluator.space.extra["learning_rate"], evaluator.space.extra["length"]
    assert (rate.values, rate.default) == ((0.002, 0.004, 0.016), 0.002)
    assert (length.values, length.default) == ((0.5, 1.0), 1.0)


def test_a_plans_rate_is_that_of_the_settings_to_the_bit(evaluator: QuantizedLoRAEvaluator) -> None:
    plan = evaluator.space.without_extra.uniform(2, 8)
    faster = make_evaluator(**{**SECTIONS, "training": {"batch_size": 4, "learning_rate": 0.016}})
    with_rate = replace(plan, extra=(("learning_rate", 0.016),))
    losses = [evaluator.evaluate(p).loss for p in (plan, with_rate, plan)]
    assert losses[0] == losses[2] != losses[1] == faster.evaluate(plan).loss


def test_a_plans_length_cuts_the_steps_and_leaves_the_rows(evaluator: QuantizedLoRAEvaluator) -> None:
    plan = evaluator.space.without_extra.uniform(2, 8)
    short, half = (
        evaluator.evaluate(replace(plan, extra=(("length", 0.5),))),
        evaluator.evaluate(plan, fidelity=0.5),
    )
    assert short.metrics["train_loss"] == half.metrics["train_loss"]
    assert short.metrics["trained_tokens"] == half.metrics["trained_tokens"]
    assert short.loss != half.loss  # of twice as many validation rows


def make_run(folder: Path, strategy: str) -> Run:
    sections = {**SECTIONS, "space": SEARCHED, "model": {"name": "tiny"}, "task": {"name": "arithmetic"}}
    return Run(
        folder,
        make_config({**sections, "search": {"strategy": strategy, "evaluations": 5, "memory": "uniform4r8"}}),
    )


def test_a_run_searches_them_and_tunes_the_plan_at_the_settings_rate(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", "random") as run:
        run.search(progress=False)
        tried = {trial.plan.extra for trial in run.result.trials}
        assert len({dict(extra).get("learning_rate") for extra in tried}) > 1
        assert run.result.spent == sum(trial.plan.length for trial in run.result.trials) >= 5
        assert run.plan.extra == ()
        comparison = run.finetune(progress=False)
        assert {record.learning_rate for tuned in comparison.tunings for record in tuned.records} == {
            0.002,
            None,
        }  # None: the untuned model


def test_a_strategy_that_does_not_search_them_is_refused(tmp_path: Path) -> None:
    with (
        make_run(tmp_path / "run", "qra") as run,
        pytest.raises(
            BadInput, match="'qra' does not search learning_rate and length: choose random, nsga2 or bayes"
        ),
    ):
        run.search(progress=False)
