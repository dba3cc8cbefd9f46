"""Old path."""

from qra_search.study.study import Listener as Listener  # old path
