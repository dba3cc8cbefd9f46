"""The packages keep apart: the search knows nothing of models, backends know nothing of the search."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "qra_search": (ROOT / "qra_search", {"qra_eval", "qra_backends", "transformers", "peft", "torch.nn"}),
    "qra_backends": (ROOT / "backends" / "qra_backends", {"qra_eval", "qra_search"}),
}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_package_imports_nothing_from_where_it_must_not(package):
    folder, forbidden = FORBIDDEN[package]
    files = sorted(folder.rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]
    assert wrong == []
