"""What is searched: groups of linears, plans, and their exact bytes."""

from __future__ import annotations

from qra_search.space.groups import Group, Linear
from qra_search.space.levels import Level
from qra_search.space.memory import BudgetTooSmall, GroupwiseFormat, MemoryModel, StorageFormat
from qra_search.space.plan import Plan
from qra_search.space.space import DEFAULT_BITS, DEFAULT_RANKS, SearchSpace

__all__ = [
    "BudgetTooSmall",
    "DEFAULT_BITS",
    "DEFAULT_RANKS",
    "Group",
    "GroupwiseFormat",
    "Level",
    "Linear",
    "MemoryModel",
    "Plan",
    "SearchSpace",
    "StorageFormat",
]
