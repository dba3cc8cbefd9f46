"""What is searched: groups of linears, plans, and their exact bytes."""

from __future__ import annotations

from qra_search.space.memory import BudgetTooSmall, GroupwiseFormat, MemoryModel, StorageFormat
from qra_search.space.space import DEFAULT_BITS, DEFAULT_RANKS, Group, Linear, Plan, SearchSpace

__all__ = [
    "BudgetTooSmall",
    "DEFAULT_BITS",
    "DEFAULT_RANKS",
    "Group",
    "GroupwiseFormat",
    "Linear",
    "MemoryModel",
    "Plan",
    "SearchSpace",
    "StorageFormat",
]
