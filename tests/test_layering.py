"""Our own imports stand at the top of files, but for modules that need what is heavy. Layers are import-linter's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "qra_search": ROOT / "qra_search",
    "qra_eval": ROOT / "qra_eval",
    "qra_backends": ROOT / "backends" / "qra_backends",
}
BUILT_ON_THESE = (
    "qra_backends.ggml.decode_triton",
    "qra_backends.ggml.types",
    "qra_backends.kernels.groupwise",
    "qra_backends.reference.feedback_triton",
    "qra_backends.trellis.decode_numba",
    "qra_backends.trellis.decode_triton",
    "qra_backends.trellis.encode",
    "qra_backends.trellis.viterbi_triton",
    "qra_backends.libraries.bitsandbytes",  # layers that subclass those of an optional library
    "qra_eval.evaluators.quantized_lora",
    "qra_eval.models.from_gguf",
    "qra_eval.models.load",
    "qra_eval.tasks.batches",
    "qra_eval.tuning.loading",
)
"""Our own modules that import a heavy or optional library at their top."""


def function_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import inside a function."""
    for outer in ast.walk(ast.parse(path.read_text())):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(outer):
                if isinstance(node, ast.Import):
                    yield from ((node.lineno, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.lineno, node.module


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_only_what_needs_heavy_libraries_is_imported_inside_a_function(package: str) -> None:
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    wrong = {
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in function_imports(path)
        if name.split(".")[0] in PACKAGES and not name.startswith(BUILT_ON_THESE)
    }
    assert sorted(wrong) == []
