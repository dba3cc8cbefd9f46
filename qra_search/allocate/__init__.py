"""The best plan within a budget from the sensitivities alone: their additive table, and an exact knapsack over it."""

from __future__ import annotations

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.solve import Allocation, UniformPrediction, solve, solve_table
from qra_search.allocate.table import additive_table, flat_sensitivities

__all__ = [
    "Allocation",
    "Sensitivities",
    "UniformPrediction",
    "additive_table",
    "flat_sensitivities",
    "solve",
    "solve_table",
]
