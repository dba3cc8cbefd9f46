"""Arguments of the wrong kind: what was given, and what is taken instead."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import AdditiveEvaluator

from qra_search import BadInput, Study, search

EVALUATOR = AdditiveEvaluator()


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (
            "tiny",
            r"evaluator is 'tiny' \(str\): an Evaluator is needed\. .*, use qra_search.plan or `qra search`",
        ),
        (AdditiveEvaluator, "evaluator is the class AdditiveEvaluator: an instance is needed"),
        (EVALUATOR.space, "an Evaluator is needed"),
    ],
    ids=["a name", "a class", "a space"],
)
def test_an_evaluator_of_another_kind_is_refused(evaluator: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        search(evaluator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": "ten"}, r"evaluations is 'ten' \(str\): a positive number is needed"),
        ({"evaluations": 0}, "evaluations is 0"),
        ({"evaluations": float("nan")}, "evaluations is nan"),
        ({"seed": "x"}, r"seed is 'x' \(str\): a whole number from 0 on is needed"),
        ({"seed": -1}, "seed is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"strategy": 3}, r"strategy is 3 \(int\): the name of a strategy, or a Strategy, is needed"),
        ({"strategy": AdditiveEvaluator}, "strategy is the class AdditiveEvaluator"),
        ({"memory_budget": "lots"}, "'lots' is not a memory budget: write one such as 108MiB"),
        ({"memory_budget": {"MiB": 3}}, "is not a memory budget"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_an_option_of_another_kind_is_refused_before_anything_is_spent(
    options: dict[str, Any], message: str
) -> None:
    evaluator = AdditiveEvaluator()
    with pytest.raises(BadInput, match=message):
        Study(evaluator, **options)
    assert evaluator.calls == 0
