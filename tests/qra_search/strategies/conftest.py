"""What tests of strategies share."""

from __future__ import annotations

import pytest

from qra_search.surrogates import gp


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are fitted roughly, in an eighth of the time: what is asserted holds however good they are."""
    monkeypatch.setattr(gp, "FIT_ITERATIONS", 8)
