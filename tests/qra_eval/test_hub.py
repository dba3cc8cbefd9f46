"""The hub is asked one quick question, and its answer is told in a few words."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from qra_eval import hub


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnectionError("no route\nto host"), "no route"),
        (OfflineModeIsEnabled("a long text of the library"), None),
        (None, None),
    ],
)
def test_the_hub_is_asked_once_with_a_time_limit(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | None, reason: str | None
) -> None:
    questions: list[Any] = []

    def ask(self: Any, name: str, *, timeout: float) -> None:
        questions.append((name, timeout))
        if answer is not None:
            raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    assert hub.unavailable_reason("dataset", "someone/thing") == reason
    assert questions == [("someone/thing", hub.SECONDS)]
