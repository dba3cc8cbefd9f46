from qra_search.schemas import Proposal as Proposal  # old path
from qra_search.schemas import Trial as Trial  # old path
