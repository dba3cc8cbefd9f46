from qra_search.schemas import Group as Group  # old path
from qra_search.schemas import Linear as Linear  # old path
from qra_search.schemas import Plan as Plan  # old path
