"""Old path."""

from qra_search.strategies import average_losses as average_losses  # old path
from qra_search.strategies import find_non_dominated as find_non_dominated  # old path
