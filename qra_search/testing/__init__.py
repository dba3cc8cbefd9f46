"""Contract tests for plug-ins, and the small scenarios that they run on."""

from __future__ import annotations

from qra_search.testing.evaluator import EvaluatorContract
from qra_search.testing.strategy import StrategyContract

__all__ = ["EvaluatorContract", "StrategyContract"]
