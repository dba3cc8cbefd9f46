from qra_search.log.journal import TrialLog as TrialLog  # old path
from qra_search.log.journal import describe_process as describe_process  # old path
