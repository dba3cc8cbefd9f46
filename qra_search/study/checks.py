"""Old path."""

from qra_search.study.study import StudyFailed, check_evaluator  # noqa: F401  # old path
