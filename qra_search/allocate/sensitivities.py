"""Old path."""

from qra_search.space.serialization import check_sensitivities, read_sensitivities, write_sensitivities  # noqa: F401  # old path
