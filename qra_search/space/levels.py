"""Old path."""

from qra_search.space.memory import Level as Level  # old path
from qra_search.space.memory import read_name as read_name  # old path
