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
