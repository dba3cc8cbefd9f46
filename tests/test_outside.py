"""An evaluator written outside the project, against the exported names alone, is searched."""

from __future__ import annotations

import subprocess
import sys

STRATEGIES = ("uniform", "random", "additive", "qra", "nsga2")
SCRIPT = """
import sys
from qra_search import Evaluation, Evaluator, Group, Linear, Plan, Sensitivities, SearchResult, SearchSpace, search

class Mine(Evaluator):
    def __init__(self):
        shapes = [(96, 64), (64, 64), (32, 64), (64, 96)]
        self.space = SearchSpace(
            groups=[
                Group(name=f"block.{i}", linears=[Linear(name=f"block.{i}.w", out_features=o, in_features=n)])
                for i, (o, n) in enumerate(shapes)
            ],
            bits=(2, 3, 4, 8), ranks=(0, 1, 2), fixed_bytes=1000,
        )

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        loss = sum((i + 1) * 2.0 ** -b + 0.01 / (1 + r) for i, (b, r) in enumerate(zip(plan.bits, plan.ranks)))
        return Evaluation(loss=loss, memory_bytes=self.space.memory_bytes(plan))

mine = Mine()
budget = mine.space.memory_bytes(Plan(bits=(3,) * 4, ranks=(2,) * 4))
for strategy in sys.argv[1:]:
    result = search(mine, strategy=strategy, evaluations=12, memory_budget=budget, seed=0)
    assert isinstance(result, SearchResult), strategy
    best = result.best(memory_budget=budget)
    assert best.memory_bytes <= budget and result.front[0].memory_bytes <= result.front[-1].memory_bytes, strategy
    print(best.plan)
"""


def test_a_foreign_evaluator_is_searched():
    """By the strategies that load no Gaussian processes: the contract tests hold all others to the same interface."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *STRATEGIES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Plan(4 groups") == len(STRATEGIES)
