"""The conformance kit with its layers and inputs on a device; `conformance.py` runs it by pytest, for one backend.

The kit draws on the CPU. Here all that it draws or reads from files is put on the device of `QRA_KIT_DEVICE`; what a
backend makes itself is left where the backend puts it: one that forgets the device has to fail.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import pytest
import torch
from qra_backends import Backend, conformance, make_backend
from qra_backends.conformance import BackendConformance

DEVICE = os.environ["QRA_KIT_DEVICE"]
SMALL = {"shapes": ((128, 64),)}
BLOCKS = {"shapes": ((16, 256),), "shape": (16, 512), "small": (16, 256)}
"""For gguf, whose rows are whole blocks."""


class _OnDevice:
    """The module torch, but for what the kit draws by itself."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.randn(*args, **kwargs).to(DEVICE)

    def eye(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.eye(*args, **kwargs).to(DEVICE)


def _linear_on_device(*args: Any, _linear: Any = conformance.make_linear, **kwargs: Any) -> torch.nn.Linear:
    return _linear(*args, **kwargs).to(DEVICE)


def _spec() -> Any:
    """The backend that is tested now: one process tests several."""
    return json.loads(os.environ["QRA_KIT_BACKEND"])


@pytest.fixture(autouse=True)
def _on_device(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    spec = _spec()
    blocks = isinstance(spec, dict) and spec["name"] == "gguf"
    for name, shapes in (BLOCKS if blocks else SMALL if os.environ.get("QRA_KIT_SMALL") else {}).items():
        monkeypatch.setattr(request.cls, name, shapes)
    monkeypatch.setattr(conformance, "torch", _OnDevice())
    monkeypatch.setattr(conformance, "make_linear", _linear_on_device)
    monkeypatch.setattr(conformance, "safe_open", partial(conformance.safe_open, device=DEVICE))


class TestOnDevice(BackendConformance):
    @pytest.fixture
    def backend(self) -> Backend:
        backend = make_backend(_spec())
        if torch.device(DEVICE).type not in backend.devices:
            pytest.skip(f"{backend.name} runs on {', '.join(backend.devices)}")
        return backend
