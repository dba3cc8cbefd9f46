"""Old path."""

from qra_search.study.result import EvaluatedPlan, LossChange, UniformComparison  # noqa: F401  # old path
