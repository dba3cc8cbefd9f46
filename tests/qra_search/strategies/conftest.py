"""What tests of strategies share."""

from __future__ import annotations

import pytest

from qra_search.strategies.baselines import bayes
from qra_search.surrogates import gp


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are fitted and searched roughly: what is asserted holds however good they are."""
    monkeypatch.setattr(gp, "FIT_ITERATIONS", 3)
    monkeypatch.setattr(bayes, "RESTARTS", 1)
