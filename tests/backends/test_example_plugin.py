"""A third party's package is found by its entry point, tested with the public kit, and searched with."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from qra_backends import make_backend, registry

from qra_search import Evaluation, Evaluator, Group, Level, Linear, SearchSpace, search

pytest.importorskip("hqq", reason="hqq is not installed")

EXAMPLE = Path(__file__).parents[2] / "backends" / "example"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
sys.path.insert(0, str(EXAMPLE))

from test_qra_hqq import *  # noqa: E402, F403 - the package's own tests


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    declared = PROJECT["entry-points"][registry.ENTRY_POINT_GROUP].items()
    points = {name: EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in declared}
    known = registry._find_entry_points()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_find_entry_points", lambda: {**known, **points})
        yield


def test_a_search_uses_it_beside_other_backends() -> None:
    backend = make_backend({3: "hqq", 4: "reference", 8: "reference"})
    linears = [Linear(name=str(i), out_features=64, in_features=64) for i in range(4)]

    class Toy(Evaluator):
        space = SearchSpace(
            groups=[Group(name=linear.name, linears=[linear]) for linear in linears],
            bits=[Level(bits, bits, format=backend.storage(bits)) for bits in backend.bits],
            ranks=(4, 8),
        )

        def evaluate(self, plan, *, fidelity=1.0, seed=0):
            loss = sum(4.0**-bits for bits in plan.bits)
            return Evaluation(loss, self.space.memory_bytes(plan), fidelity=fidelity, seed=seed, seconds=0.0)

    result = search(Toy(), strategy="uniform", evaluations=6, seed=0)
    three = {c.memory_bytes for c in result.front if set(c.plan.bits) == {3}}
    words = -(-64 // 10) * 64  # ten groups' codes in 32 bits; the last word is padded
    assert three == {4 * (4 * words + 4 * 64 + 2 * 4 * (64 + 64))}
    assert backend.spec["choice"]["3"]["name"] == "hqq"


def test_what_it_needs_is_what_is_installed_and_the_whole_package_is_short() -> None:
    for needed in map(Requirement, PROJECT["dependencies"]):
        assert needed.specifier.contains(version(needed.name)), needed
    files = [path for path in EXAMPLE.iterdir() if path.suffix in {".py", ".toml", ".md"}]
    assert sum(len(path.read_text().splitlines()) for path in files) < 160
