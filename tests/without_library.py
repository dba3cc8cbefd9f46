"""Run as a script in a process of its own: hides libraries as if they were not installed, and uses all the rest.

Arguments: import names, then distributions' names, each joined by commas. Prints a JSON object with what was refused
and why.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

HIDDEN, DISTRIBUTIONS = (argument.split(",") for argument in sys.argv[1:3])


class Hiding:
    """A finder of modules and distributions that does not see the libraries."""

    def __init__(self, finder: Any):
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def find_distributions(self, *args: Any) -> Iterator[Any]:
        for found in getattr(self.finder, "find_distributions", lambda *_: ())(*args):
            if (found.metadata["Name"] or "").lower().replace("_", "-") not in DISTRIBUTIONS:
                yield found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def modules() -> dict[str, str]:
    """Import every module of the project; those that cannot be, with the reason."""
    refused = {}
    for package in ("qra_search", "qra_eval", "qra_backends"):
        folder = importlib.import_module(package).__path__
        for found in pkgutil.walk_packages(folder, f"{package}."):
            if found.name.endswith("__main__") or found.name in (
                "qra_backends.conformance",
                "qra_search.testing",
            ):
                continue
            try:
                importlib.import_module(found.name)
            except ImportError as error:
                refused[found.name] = str(error)
    return refused


def backends() -> dict[str, str]:
    """Quantize a linear with every backend, at its first level; those that are unavailable, with the reason."""
    import torch
    from qra_backends import backend_names, make_backend

    refused = {}
    linear = torch.nn.Linear(64, 64, bias=False)
    for name in backend_names():
        backend = make_backend(name)
        reason = backend.unavailable_reason()
        if reason is not None:
            refused[name] = reason
            continue
        level = next(level for level in backend.bits if backend.unsupported_reason(level, 64, 64) is None)
        module = backend.quantize(linear, level, hessian=torch.eye(64) if backend.calibrated else None)
        assert torch.isfinite(backend.dequantize(module)).all(), name
    return refused


if __name__ == "__main__":
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
    assert not any(map(importlib.util.find_spec, HIDDEN))
    answers = {f.__name__: f() for f in (modules, backends)}
    assert not [name for name in sys.modules if name.partition(".")[0] in HIDDEN]
    print(json.dumps(answers))
