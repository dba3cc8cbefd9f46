"""Every kernel compiles for five GPUs on a machine without one, and keeps all it computes with in registers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
TARGETS = {"sm_80", "sm_90", "sm_100", "sm_120", "gfx942"}


def test_every_kernel_compiles_for_every_target_and_spills_nothing(tmp_path: Path):
    rows_file = tmp_path / "kernels.jsonl"
    command = [sys.executable, "-m", "benchmarks.kernels", "--out", rows_file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    assert not [row for row in rows if row["spilled"]]
    sources = [path for path in (ROOT / "backends").rglob("*_triton.py")]
    launched = {name for path in sources for name in find_launched(path.read_text())}
    assert {row["kernel"].split(": ")[1] for row in rows} == launched
    for kernel in {row["kernel"] for row in rows}:
        assert {row["target"] for row in rows if row["kernel"] == kernel} == TARGETS


def find_launched(source: str) -> set[str]:
    """Names of the kernels that a file launches, each by `name[grid](...)` or `name[(count,)](...)`."""
    return {line.strip().split("[")[0] for line in source.splitlines() if line.rstrip().endswith("](")}
