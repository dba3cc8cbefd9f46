from qra_search.log.journal import LogError as LogError  # old path
from qra_search.log.journal import round_trip as round_trip  # old path
