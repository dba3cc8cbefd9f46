from qra_search.errors import EvaluationFailed as EvaluationFailed  # old path
from qra_search.evaluator import Evaluator as Evaluator  # old path
from qra_search.evaluator import Progress as Progress  # old path
from qra_search.schemas import Evaluation as Evaluation  # old path
