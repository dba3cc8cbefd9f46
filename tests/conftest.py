"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
from fakes import AdditiveEvaluator, make_space

from qra_search import SearchSpace


@pytest.fixture
def space() -> SearchSpace:
    return make_space()


@pytest.fixture
def evaluator() -> AdditiveEvaluator:
    return AdditiveEvaluator()


@pytest.fixture
def notes(tmp_path):
    """A folder in which evaluators in workers leave word of what they did (`worker_evaluators`)."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder
