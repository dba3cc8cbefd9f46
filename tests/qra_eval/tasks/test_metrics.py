"""Scores of single answers."""

from __future__ import annotations

import pytest

from qra_eval.tasks.metrics import exact_match, json_f1


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ("  Card  arrival ", " card arrival", 1.0),
        ("card arrivals", " card arrival", 0.0),
        ('{"b": 1, "a": [2]}', ' {"a":[2],"b":1}', 1.0),
        ('{"a": "X"}', '{"a":"x"}', 0.0),
        ("{a: 1}", '{"a":1}', 0.0),
        ("{}", "{}", 1.0),
        ("4.0", "4", 0.0),  # a number alone is a text
    ],
)
def test_exact_match_forgives_case_white_space_and_the_order_of_fields(answer, wanted, score):
    assert exact_match(answer, wanted) == score


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ('{"a":1,"b":2}', '{"a":1,"b":3}', 0.5),  # precision 1/2, recall 1/2
        ('{"a":1}', '{"a":1,"b":2,"c":3}', 0.5),  # precision 1, recall 1/3
        ("{}", "{}", 1.0),
        ("{}", '{"a":1}', 0.0),
        ("no JSON", '{"a":1}', 0.0),
        ("[1]", '{"a":1}', 0.0),
    ],
)
def test_f1_is_over_the_fields_of_the_object(answer, wanted, score):
    assert json_f1(answer, wanted) == pytest.approx(score)
