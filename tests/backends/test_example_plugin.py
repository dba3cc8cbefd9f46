"""A third party's package is installed, found, tested with the public kit, and searched with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

EXAMPLE = Path(__file__).parents[2] / "backends" / "example"

SEARCH = """
from qra_backends import make_backend
from qra_search import Evaluation, Evaluator, Group, Level, Linear, SearchSpace, search

backend = make_backend({3: "hqq", 4: "reference", 8: "reference"})

class Toy(Evaluator):
    space = SearchSpace(
        groups=[Group(name=str(i), linears=[Linear(name=str(i), out_features=64, in_features=64)]) for i in range(4)],
        bits=[Level(b, b, format=backend.storage(b)) for b in (3, 4, 8)], ranks=(4, 8),
    )
    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        loss = sum(4.0 ** -bits for bits in plan.bits)
        return Evaluation(loss, self.space.memory_bytes(plan), fidelity=fidelity, seed=seed, seconds=0.0)

def test_a_search_uses_it_beside_other_backends():
    result = search(Toy(), strategy="uniform", evaluations=6, seed=0)
    three = {c.memory_bytes for c in result.front if set(c.plan.bits) == {3}}
    words = -(-64 // 10) * 64  # ten groups' codes in 32 bits; the last word is padded
    assert three == {4 * (4 * words + 4 * 64 + 2 * 4 * (64 + 64))}, three
    assert backend.spec["choice"]["3"]["name"] == "hqq"
"""


def test_it_is_installed_passes_the_conformance_kit_and_is_searched_with(tmp_path: Path):
    pytest.importorskip("hqq", reason="hqq is not installed")
    pytest.importorskip("setuptools", reason="setuptools, which builds the example, is not installed")
    source = shutil.copytree(EXAMPLE, tmp_path / "source")  # building leaves files in the source
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-index"]
    declared = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["dependencies"]
    for needed in map(Requirement, declared):
        assert needed.specifier.contains(version(needed.name)), f"{needed} is not what is installed"
    subprocess.run([*install, "--no-deps", "--target", tmp_path / "site", source], check=True)
    own = tmp_path / "test_search.py"
    own.write_text(SEARCH)
    tests = [EXAMPLE / "test_qra_hqq.py", own]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    found = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.getenv("PYTHONPATH")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": found}, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


def test_the_whole_package_is_short():
    files = [path for path in EXAMPLE.iterdir() if path.suffix in {".py", ".toml", ".md"}]
    assert sum(len(path.read_text().splitlines()) for path in files) < 160
