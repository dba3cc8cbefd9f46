"""Old path."""

from qra_search.strategies import average_losses, find_non_dominated  # noqa: F401  # old path
