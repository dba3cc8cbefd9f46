"""Tuned runs of tiny models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from evaluators import tune_tiny
from tiny_families import save_tiny

from qra_eval.export.tuned import TunedRun

BACKENDS: dict[str, tuple[Any, tuple[Any, ...], tuple[int, ...]]] = {
    "gguf": ({"name": "gguf", "types": ["Q4_0", "Q8_0"]}, ("Q4_0", "Q8_0", 16), (4, 8, 16)),
    "compressed-tensors": ("compressed-tensors", (4, 8, 16), (4, 8, 16)),
    "reference": ("reference", (3, 2, 4, 16), (2, 3, 4, 16)),
}
"""The spec of each, the levels of its plans in turn, and their bits."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TunedRun]:
    """Gives the run of a family and a backend, made once."""

    @functools.cache
    def tune(family: str, backend: str = "gguf", granularity: str = "fused") -> TunedRun:
        folder = tmp_path_factory.mktemp(f"{family}-{backend}-{granularity}")
        spec, levels, bits = BACKENDS[backend]
        return tune_tiny(
            save_tiny(family, folder / "model"),
            folder / "run",
            levels,
            (8, 4, 8, 0),
            quantization={"backend": spec},
            space={"bits": bits, "ranks": (0, 4, 8), "granularity": granularity},
        )

    return tune
