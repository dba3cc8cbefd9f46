"""Old path."""

from qra_search.space.memory import Level, read_name  # noqa: F401  # old path
