"""What an evaluator may also do: methods of the base class that may be left out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qra_eval import QuantizedLoRAEvaluator
from qra_search import Plan
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import Evaluator
from qra_search.schemas import TuningRecord
from qra_search.testing.scenarios import ToyEvaluator


def test_an_evaluator_without_abilities_says_of_each_that_it_lacks_it() -> None:
    formula = ToyEvaluator()
    assert not formula.can_tune and formula.progress is None
    assert formula.render_row() is None
    assert (dict(formula.estimate()), dict(formula.row_counts()), list(formula.cards())) == ({}, {}, [])
    assert formula.sensitivity_cost() is None and math.isnan(formula.evaluation_seconds())
    with pytest.raises(BadInput, match="evaluator ToyEvaluator cannot fine-tune a plan"):
        formula.tune(formula.space.uniform_plans()[0])


def test_the_real_evaluator_has_them_all() -> None:
    able = ("tune", "estimate", "sensitivity_cost", "evaluation_seconds", "row_counts", "cards", "render_row")
    assert all(getattr(QuantizedLoRAEvaluator, name) is not getattr(Evaluator, name) for name in able)


def test_an_evaluator_that_is_given_a_way_to_tune_can() -> None:
    class Tuning(ToyEvaluator):
        def tune(self, plan: Plan, **options: Any) -> TuningRecord:
            return TuningRecord(plan, 0, 1, self.space.memory_bytes(plan), row_nats=(2.0,), row_tokens=(1,))

    borrowed: Any = ToyEvaluator()
    borrowed.tune = Tuning().tune
    assert Tuning().can_tune and borrowed.can_tune
