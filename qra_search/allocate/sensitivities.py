"""Old path."""

from qra_search.space.serialization import check_sensitivities as check_sensitivities  # old path
from qra_search.space.serialization import read_sensitivities as read_sensitivities  # old path
from qra_search.space.serialization import write_sensitivities as write_sensitivities  # old path
