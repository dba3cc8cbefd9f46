"""SMAC3's random forest as a strategy, rebuilt from the trial log for every proposal."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from qra_search.errors import install_hint
from qra_search.strategies.outside import OutsideStrategy, Problem, quiet


class SMACStrategy(OutsideStrategy):
    """SMAC3's facade for hyperparameters: a random forest of the loss and expected improvement. Needs the extra `smac`.

    Its initial design is left out: the trials that a study begins with stand in for it.

    Args:
        challengers: random points that the acquisition is looked up at.
        local_search_iterations: local searches of the acquisition.
    """

    name = "smac"

    def __init__(self, challengers: int = 10_000, local_search_iterations: int = 10):
        self.challengers, self.local_search_iterations = challengers, local_search_iterations
        _smac()

    def suggestions(self, problem: Problem) -> Iterator[np.ndarray]:
        import ConfigSpace
        import joblib

        smac = _smac()
        space = ConfigSpace.ConfigurationSpace(seed=problem.seed)
        names = [f"v{v}" for v in range(len(problem.counts))]
        space.add([ConfigSpace.Integer(n, (0, int(k) - 1)) for n, k in zip(names, problem.counts, strict=True)])
        facade = smac.HyperparameterOptimizationFacade
        # SMAC makes a folder for every scenario, though nothing is saved.
        with tempfile.TemporaryDirectory() as folder:
            with quiet():
                scenario = smac.Scenario(
                    space, n_trials=problem.evaluations, deterministic=True, seed=problem.seed, output_directory=folder
                )
                optimizer = facade(
                    scenario,
                    initial_design=facade.get_initial_design(scenario, n_configs=0),
                    acquisition_maximizer=facade.get_acquisition_maximizer(
                        scenario,
                        challengers=self.challengers,
                        local_search_iterations=self.local_search_iterations,
                    ),
                    logging_level=False,
                )
                for point, loss in zip(problem.points.tolist(), problem.losses.tolist(), strict=True):
                    config = ConfigSpace.Configuration(space, values=dict(zip(names, point, strict=True)))
                    told = smac.runhistory.TrialInfo(config, seed=0)
                    optimizer.tell(told, smac.runhistory.TrialValue(cost=loss), save=False)
            while True:
                try:
                    # A pool of threads for each of hundreds of predictions costs more than the predictions.
                    with quiet(), joblib.parallel_config("sequential"):
                        asked = optimizer.ask().config
                except (StopIteration, smac.main.exceptions.ConfigurationSpaceExhaustedException):
                    return
                yield np.array([asked[n] for n in names])


def _smac() -> Any:
    try:
        import smac
        import smac.main.exceptions
        import smac.runhistory
    except ImportError:
        raise ImportError(f"the strategy smac needs the package smac: {install_hint('smac')}") from None
    return smac
