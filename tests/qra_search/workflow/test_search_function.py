"""`search`: the options of a study, spelled out, and its progress."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import AdditiveEvaluator

from qra_search import search


def test_an_evaluator_that_reports_its_work_is_given_the_view_unless_it_reports_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Reporting(AdditiveEvaluator):
        progress: Any = None

        def sensitivities(self) -> Any:
            self.progress("measure the sensitivities", 0, 2)
            self.progress("measure the sensitivities", 2, 2)
            return super().sensitivities()

    evaluator = Reporting()
    search(evaluator, strategy="random", evaluations=3, progress=True)
    assert "measure the sensitivities" in capsys.readouterr().err
    told: list[Any] = []
    evaluator.progress = lambda *what: told.append(what)
    search(evaluator, strategy="random", evaluations=3, progress=True)
    assert told and "measure the sensitivities" not in capsys.readouterr().err
