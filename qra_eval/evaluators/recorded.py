"""The evaluator `recorded`: a surrogate fitted to the trial log of a real run.

`benchmarks/strategies/held_out.py` prints how well it predicts evaluations that it was not shown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qra_eval.landscapes import measured
from qra_eval.landscapes.damage_model import DamageModel, Fit, fit_surrogate
from qra_eval.landscapes.families import generator
from qra_eval.landscapes.reference import Truth
from qra_search.config import RunConfig
from qra_search.evaluation.evaluator import Evaluation
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.log.recorded import recorded_space
from qra_search.log.trial_log import TrialLog
from qra_search.space.space import Plan, SearchSpace

FEWEST = 12
"""Fewer evaluations say too little about any table."""


@dataclass(frozen=True)
class Record:
    """Evaluations of plans of one space, as read from logs.

    Attributes:
        b, r: level indices (N, G) of the distinct plans.
        loss: mean loss (N,) of each.
        replicates: evaluations (N,) of each.
        seed_noise: deviation between seeds, pooled over the replicates; the measured default where there are none.
        sensitivities: those that the log holds.
    """

    space: SearchSpace
    b: np.ndarray
    r: np.ndarray
    loss: np.ndarray
    replicates: np.ndarray
    seed_noise: float
    sensitivities: Sensitivities | None


class RecordedEvaluator(Truth):
    """Predicts the loss of any plan from recorded evaluations; noise between seeds is added as it was recorded.

    The posterior mean is the noise-free truth of this evaluator: a benchmark on it says how strategies do on a
    landscape of the recorded shape, not on the model itself.
    """

    def __init__(self, record: Record, *, seed: int = 0, identity: Mapping[str, Any] | None = None):
        self.record, self.space, self.seed = record, record.space, seed
        data = Fit(record.b, record.r, record.loss, record.seed_noise / np.sqrt(record.replicates))
        self.surrogate: DamageModel = fit_surrogate(record.space, record.sensitivities, data)
        self._identity = dict(identity or {})

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        begun = time.perf_counter()
        if fidelity != 1.0:
            raise ValueError(f"recorded evaluations are full ones: fidelity must be 1, got {fidelity}")
        loss = self.true_loss(plan)
        loss += self.record.seed_noise * float(generator("noise", self.seed, plan.key, seed).standard_normal())
        return Evaluation(loss, self.space.memory_bytes(plan), seconds=time.perf_counter() - begun, seed=seed)

    def true_losses(self, b: np.ndarray, r: np.ndarray) -> np.ndarray:
        return self.surrogate.losses(b, r)

    def additive_table(self) -> np.ndarray:
        return self.surrogate.additive_table()

    def sensitivities(self) -> Sensitivities | None:
        return self.record.sensitivities

    def describe(self) -> dict[str, Any]:
        return dict(self._identity)


def read_record(logs: Sequence[str | Path]) -> Record:
    """Read trial logs, all of one space.

    Raises:
        ValueError: no evaluations, too few, or of different spaces.
    """
    paths = [Path(path) for path in logs]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"no trial log {path.name!r}: give the log of a search")
    return record_of(*_read_logs(paths))


def record_of(space: SearchSpace, sensitivities: Sensitivities | None, seen: Mapping[Plan, Sequence[float]]) -> Record:
    """The record of plans with the losses that were seen of each, one a seed.

    Raises:
        ValueError: fewer than `FEWEST` plans.
    """
    if len(seen) < FEWEST:
        raise ValueError(f"{len(seen)} distinct evaluated plans are too few to fit: at least {FEWEST} are needed")
    b, r = space.encode_many(seen)
    losses = list(seen.values())
    squares = sum(float(np.var(v) * len(v)) for v in losses)
    freedom = sum(len(v) - 1 for v in losses)
    noise = (squares / freedom) ** 0.5 if freedom else measured.SEED_NOISE
    count = np.array([len(v) for v in losses])
    return Record(space, b, r, np.array([float(np.mean(v)) for v in losses]), count, max(noise, 1e-4), sensitivities)


def build(config: RunConfig) -> RecordedEvaluator:
    """The evaluator that a config names: `options` are log (a path, or several) and seed."""
    logs, seed = config.options.get("log"), config.options.get("seed", 0)
    if not logs:
        raise ValueError("the recorded evaluator needs options.log: the trial log of a search")
    if unknown := sorted(set(config.options) - {"log", "seed"}):
        raise ValueError(f"unknown options of the recorded evaluator: {unknown}; allowed: log, seed")
    logs = [logs] if isinstance(logs, (str, Path)) else list(logs)
    record = read_record(logs)
    identity = {"recorded": [Path(log).name for log in logs], "plans": len(record.loss), "seed": seed}
    return RecordedEvaluator(record, seed=seed, identity=identity)


def _read_logs(paths: Sequence[Path]) -> tuple[SearchSpace, Sensitivities | None, dict[Plan, list[float]]]:
    spaces: list[SearchSpace] = []
    sensitivities = None
    by_seed: dict[tuple[Plan, int], list[float]] = {}
    for path in paths:
        with TrialLog(path) as log:
            spaces.append(recorded_space(log))
            if spaces[-1].signature != spaces[0].signature:
                raise ValueError(f"{path.name} is of another search space than {paths[0].name}: fit them one by one")
            data = log.meta("prior")
            sensitivities = sensitivities or (Sensitivities.from_dict(data) if data else None)
            for trial in log.trials:
                if trial.done and trial.fidelity >= 1.0:
                    by_seed.setdefault((trial.plan, trial.seed), []).append(trial.loss)
    seen: dict[Plan, list[float]] = {}
    for (plan, _), losses in by_seed.items():  # one seed twice, as in two searches' logs, says nothing of the noise
        seen.setdefault(plan, []).append(float(np.mean(losses)))
    return spaces[0], sensitivities, seen
