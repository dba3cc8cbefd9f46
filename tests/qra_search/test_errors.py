"""Errors that the user can mend have one base."""

from __future__ import annotations

import pytest

from qra_search import BadInput, BudgetTooSmall, EvaluationFailed
from qra_search.app.cli.app import exit_status
from qra_search.app.config import ConfigError
from qra_search.app.folder import NoRun
from qra_search.errors import RunFailed, convert_to_bad_input, first_line, make_type_error
from qra_search.log.journal import LogError
from qra_search.plugins import UnknownName
from qra_search.study.study import StudyFailed


@pytest.mark.parametrize("kind", [ConfigError, LogError, NoRun, UnknownName])
def test_what_the_user_can_mend_ends_with_status_2(kind: type[BadInput]) -> None:
    assert exit_status(kind("wrong")) == 2
    assert exit_status(BudgetTooSmall(1, 2)) == 2


@pytest.mark.parametrize("kind", [StudyFailed, EvaluationFailed, RuntimeError, ValueError])
def test_a_run_that_failed_ends_with_status_1(kind: type[Exception]) -> None:
    assert exit_status(kind("wrong")) == 1
    assert issubclass(kind, RunFailed) == (kind in (StudyFailed, EvaluationFailed))


def test_bad_input_keeps_the_kind_of_what_is_bad_input_already() -> None:
    with pytest.raises(UnknownName, match="^no such name$"), convert_to_bad_input():
        raise UnknownName("no such name")
    with pytest.raises(BadInput, match="^no such value$"), convert_to_bad_input():
        raise ValueError("no such value")
    with pytest.raises(ZeroDivisionError), convert_to_bad_input():
        raise ZeroDivisionError


def test_a_value_of_the_wrong_kind_is_shown_shortened() -> None:
    text = str(make_type_error("plan", "x" * 1000, "a Plan is needed"))
    assert (
        text.startswith("plan is 'xxx") and text.endswith("... (str): a Plan is needed") and len(text) < 150
    )


def test_a_first_line_that_introduces_the_next_is_given_with_it() -> None:
    assert first_line(ValueError("no such thing\nmore")) == "no such thing"
    assert first_line(ValueError("Class validation error: \n    heads do not divide\nmore")) == (
        "Class validation error: heads do not divide"
    )
    assert first_line(ValueError()) == "ValueError"
