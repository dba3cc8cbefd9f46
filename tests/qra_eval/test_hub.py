"""The hub is asked once, and what it says is told in a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from qra_eval import hub


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An empty cache, and a hub that cannot be reached; what it was asked for."""
    questions: list[Any] = []

    def unreachable(self: Any, name: str, *, timeout: float) -> None:
        questions.append((name, timeout))
        raise ConnectionError("no route\nto host")

    for method in ("model_info", "dataset_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, method, unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return questions


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_without_a_network_it_is_asked_once_with_a_limit(asked: list[Any], kind: hub.Kind) -> None:
    assert hub.refusal(kind, "someone/thing") == "no route"
    assert asked == [("someone/thing", hub.SECONDS)]


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("model", "hub/models--someone--thing"), ("dataset", "hub/datasets--someone--thing"),
     ("dataset", "datasets/someone___thing"), ("dataset", "datasets/Someone___th_ing")],
)  # fmt: skip
def test_what_was_downloaded_before_needs_no_hub(asked: list[Any], tmp_path: Path, kind: hub.Kind, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    assert hub.refusal(kind, "someone/thing") is None
    assert hub.refusal(kind, "someone/other") == "no route"


def test_that_the_hub_is_switched_off_is_said(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OfflineModeIsEnabled("a long text of the library")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    assert hub.refusal("model", "someone/thing") == "HF_HUB_OFFLINE is set"


def test_what_the_hub_has_is_not_refused(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: object())
    assert hub.refusal("dataset", "someone/thing") is None
