"""Old path."""

from qra_search.study.study import StudyFailed as StudyFailed  # old path
from qra_search.study.study import check_evaluator as check_evaluator  # old path
