"""What an evaluator may also do is seen from its members alone."""

from __future__ import annotations

from typing import Any

import pytest

from qra_eval.evaluators.landscape import build
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search import search
from qra_search.config import make_config
from qra_search.evaluation import Estimates, ReportsProgress, ShowsUntuned, Tunes
from qra_search.testing.scenarios import ToyEvaluator

ALL = (Estimates, Tunes, ShowsUntuned, ReportsProgress)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> QuantizedLoRAEvaluator:
    cache = str(tmp_path_factory.mktemp("bank"))
    return QuantizedLoRAEvaluator("tiny", quantization={"backend": "reference", "cache": cache})


def test_the_real_evaluator_offers_all_and_a_formula_none(real: QuantizedLoRAEvaluator) -> None:
    assert all(isinstance(real, offered) for offered in ALL)
    formula = build(make_config({"options": {"layers": 2}, "space": {"granularity": "layer"}}))
    assert not any(isinstance(formula, offered) for offered in ALL)


def test_an_example_is_a_problem_with_its_answer(real: QuantizedLoRAEvaluator) -> None:
    first = real.task.split("validation")[0]
    assert real.example() == first.prompt + first.answer and first.answer.strip()


def test_a_search_that_shows_its_progress_passes_it_to_an_evaluator_that_reports_some() -> None:
    class Reporting(ToyEvaluator):
        progress: Any = None

    quiet, heard = Reporting(), Reporting()
    heard.progress = listener = lambda *step: None
    for evaluator in (quiet, heard):
        search(evaluator, strategy="random", evaluations=2, progress=True)
    assert callable(quiet.progress) and heard.progress is listener
