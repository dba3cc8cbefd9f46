"""Old path."""

from qra_search.study.study import Listener  # noqa: F401  # old path
