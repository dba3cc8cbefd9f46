"""Ax's Gaussian process as a strategy, rebuilt from the trial log for every proposal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qra_search.errors import install_hint
from qra_search.plugins import unknown_message
from qra_search.strategies.outside import OutsideStrategy, Problem, quiet

METHODS = ("fast", "quality", "random_search")


class AxStrategy(OutsideStrategy):
    """Ax's client over the levels as numbers, rounded: a Gaussian process and noisy expected improvement.

    Ax's own integers are six times slower with 64 of them, so that its numbers are rounded here. Needs the extra `ax`.

    Args:
        method: how Ax generates: one of `METHODS`.
    """

    name = "ax"

    def __init__(self, method: str = "fast"):
        if method not in METHODS:
            raise ValueError(unknown_message("method of Ax", method, METHODS))
        self.method = method
        _ax()

    def suggestions(self, problem: Problem) -> Iterator[np.ndarray]:
        import torch

        ax = _ax()
        names = [f"v{v}" for v in range(len(problem.counts))]
        bounds = [(0.0, float(k - 1)) for k in problem.counts]
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(problem.seed)
            client = ax.Client(random_seed=problem.seed)
            client.configure_experiment(
                parameters=[
                    ax.RangeParameterConfig(name=n, parameter_type="float", bounds=b)
                    for n, b in zip(names, bounds, strict=True)
                ]
            )
            client.configure_optimization(objective="-loss")
            # A rebuilt client that is to begin with the centre draws at random once more, whatever it has been told.
            client.configure_generation_strategy(
                method=self.method,
                initialization_random_seed=problem.seed,
                initialize_with_center=False,
                allow_exceeding_initialization_budget=True,
            )
            for point, loss in zip(problem.points.tolist(), problem.losses.tolist(), strict=True):
                index = client.attach_trial(parameters=dict(zip(names, map(float, point), strict=True)))
                client.complete_trial(index, raw_data={"loss": loss})
        while True:
            with quiet(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(problem.seed)
                asked = list(client.get_next_trials(1).values())
            if not asked:
                return
            yield np.rint([float(asked[0][n]) for n in names]).astype(int)


def _ax() -> Any:
    try:
        with quiet():
            import ax
    except ImportError:
        raise ImportError(f"the strategy ax needs the package ax-platform: {install_hint('ax')}") from None
    return ax
