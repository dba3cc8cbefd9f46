"""Old path."""

from qra_search.study.result import EvaluatedPlan as EvaluatedPlan  # old path
from qra_search.study.result import LossChange as LossChange  # old path
from qra_search.study.result import UniformComparison as UniformComparison  # old path
