"""Contract tests for plug-ins, and the small scenarios that they run on."""

from __future__ import annotations

from qra_search.testing.contracts import EvaluatorContract, StrategyContract

__all__ = ["EvaluatorContract", "StrategyContract"]
