from qra_search.schemas import TuningRecord as TuningRecord  # old path
from qra_search.schemas import tuning_id as tuning_id  # old path
