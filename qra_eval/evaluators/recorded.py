"""The evaluator `recorded`: a surrogate fitted to the trial log of a real run, with its held-out error.

    python -m qra_eval.evaluators.recorded LOG [LOG ...] [--damage DAMAGE.jsonl] [--granularity layer]

prints how well it predicts evaluations that it was not shown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qra_eval.landscapes import measured
from qra_eval.landscapes.damage_model import DamageModel, Fit, cross_validate, fit_surrogate
from qra_eval.landscapes.noise import generator
from qra_eval.landscapes.reference import Reference, reference_front
from qra_eval.landscapes.shapes import KINDS, make_space
from qra_search.config import RunConfig
from qra_search.evaluation.evaluator import Evaluation, Evaluator
from qra_search.evaluation.prior import Prior
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
        prior: the prior that the log holds.
    """

    space: SearchSpace
    b: np.ndarray
    r: np.ndarray
    loss: np.ndarray
    replicates: np.ndarray
    seed_noise: float
    prior: Prior | None


class RecordedEvaluator(Evaluator):
    """Predicts the loss of any plan from recorded evaluations; noise between seeds is added as it was recorded.

    The posterior mean is the noise-free truth of this evaluator: a benchmark on it says how strategies do on a
    landscape of the recorded shape, not on the model itself. `held_out` says how far the two are apart.
    """

    def __init__(self, record: Record, *, seed: int = 0, identity: Mapping[str, Any] | None = None):
        self.record, self.space, self.seed = record, record.space, seed
        self.surrogate: DamageModel = fit_surrogate(record.space, record.prior, _fit(record))
        self._identity = dict(identity or {})

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        begun = time.perf_counter()
        if fidelity != 1.0:
            raise ValueError(f"recorded evaluations are full ones: fidelity must be 1, got {fidelity}")
        loss = self.true_loss(plan)
        loss += self.record.seed_noise * float(generator("noise", self.seed, plan.key, seed).standard_normal())
        return Evaluation(loss, self.space.memory_bytes(plan), seconds=time.perf_counter() - begun, seed=seed)

    def true_loss(self, plan: Plan) -> float:
        """Posterior mean of the loss."""
        b, r = self.space.encode(plan)
        return float(self.surrogate.losses(b[None], r[None])[0])

    def true_losses(self, b: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Posterior means (N,) of level indices (N, G), (N, G)."""
        return self.surrogate.losses(np.asarray(b), np.asarray(r))

    def additive_table(self) -> np.ndarray:
        """float (G, B, R): each choice's own share of the loss, where groups are linearised."""
        return self.surrogate.additive_table()

    @property
    def is_additive(self) -> bool:
        return False

    def reference_front(self, budgets: tuple[int, ...], cache: str | None = None) -> Reference:
        """The best plans known under these budgets, by the posterior mean."""
        return reference_front(self, budgets, cache=cache)

    def held_out(self, folds: int = 5) -> dict[str, float]:
        """Errors on evaluations that the fit was not shown; see `cross_validate`."""
        return cross_validate(self.space, self.record.prior, _fit(self.record), folds)

    def prior(self) -> Prior | None:
        return self.record.prior

    def describe(self) -> dict[str, Any]:
        return dict(self._identity)


def read_record(
    logs: Sequence[str | Path],
    *,
    damage: str | Path | None = None,
    shape: str = "smollm2",
    granularity: str = "layer",
) -> Record:
    """Read trial logs, or plain JSONL of {"bits", "ranks", "loss"}.

    All must be of one space. Plain JSONL has none of its own: its plans are taken to be of a decoder with the widths
    of `shape`, one choice for each layer, module or set of fused modules as `granularity` says.

    Args:
        damage: JSONL of {"layer", "bits", "loss"}, untuned losses with one layer degraded: the prior of JSONL logs.

    Raises:
        ValueError: no evaluations, too few, or of different spaces.
    """
    paths = [Path(path) for path in logs]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"no trial log {path.name!r}: give the log of a search, or JSONL of bits, ranks, loss")
    if all(path.suffix == ".jsonl" and not _is_log(path) for path in paths):
        space, prior, seen = _read_jsonl(paths, damage, shape, granularity)
    else:
        space, prior, seen = _read_logs(paths)
    if len(seen) < FEWEST:
        raise ValueError(f"{len(seen)} distinct evaluated plans are too few to fit: at least {FEWEST} are needed")
    b, r = space.encode_many(seen)
    losses = list(seen.values())
    squares = sum(float(np.var(v) * len(v)) for v in losses)
    freedom = sum(len(v) - 1 for v in losses)
    noise = (squares / freedom) ** 0.5 if freedom else measured.SEED_NOISE
    count = np.array([len(v) for v in losses])
    return Record(space, b, r, np.array([float(np.mean(v)) for v in losses]), count, max(noise, 1e-4), prior)


def build(config: RunConfig) -> RecordedEvaluator:
    """The evaluator that a config names: `options` are log (a path, or several), damage, shape and seed."""
    options = dict(config.options)
    logs, seed = options.pop("log", None), options.pop("seed", 0)
    if not logs:
        raise ValueError("the recorded evaluator needs options.log: the trial log of a search, or JSONL")
    unknown = set(options) - {"damage", "shape", "granularity"}
    if unknown:
        raise ValueError(
            f"unknown options of the recorded evaluator: {sorted(unknown)}; allowed: log, damage, shape, "
            "granularity, seed"
        )
    logs = [logs] if isinstance(logs, (str, Path)) else list(logs)
    record = read_record(logs, **options)
    identity = {"recorded": [Path(log).name for log in logs], "plans": len(record.loss), "seed": seed}
    return RecordedEvaluator(record, seed=seed, identity=identity)


def _fit(record: Record) -> Fit:
    return Fit(record.b, record.r, record.loss, record.seed_noise / np.sqrt(record.replicates))


def _read_logs(paths: Sequence[Path]) -> tuple[SearchSpace, Prior | None, dict[Plan, list[float]]]:
    space, prior = None, None
    seen: dict[Plan, list[float]] = {}
    by_seed: dict[tuple[Plan, int], list[float]] = {}
    for path in paths:
        with TrialLog(path) as log:
            own = recorded_space(log)
            if space is not None and own.signature != space.signature:
                raise ValueError(f"{path.name} is of another search space than {paths[0].name}: fit them one by one")
            space = space or own
            data = log.meta("prior")
            prior = prior or (Prior.from_dict(data) if data else None)
            for trial in log.trials:
                if trial.done and trial.fidelity >= 1.0:
                    by_seed.setdefault((trial.plan, trial.seed), []).append(trial.loss)
    for (plan, _), losses in by_seed.items():  # one seed twice, as in two searches' logs, says nothing of the noise
        seen.setdefault(plan, []).append(float(np.mean(losses)))
    assert space is not None
    return space, prior, seen


def _is_log(path: Path) -> bool:
    """Whether a file of JSON lines is a trial log, not one of bits, ranks, loss alone."""
    with path.open("rb") as file:
        return b"qra-log/" in file.readline(200)


def _read_jsonl(
    paths: Sequence[Path], damage: str | Path | None, shape: str, granularity: str
) -> tuple[SearchSpace, Prior | None, dict[Plan, list[float]]]:
    seen: dict[Plan, list[float]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            seen.setdefault(Plan(tuple(row["bits"]), tuple(row["ranks"])), []).append(float(row["loss"]))
    sizes = {len(plan.bits) for plan in seen}
    if len(sizes) != 1:
        raise ValueError(f"plans of one space have one length, got {sorted(sizes)}")
    if granularity not in KINDS:
        raise ValueError(f"granularity must be one of {', '.join(KINDS)}, got {granularity!r}")
    kinds = len(KINDS[granularity])
    groups = sizes.pop()
    if groups % kinds:
        raise ValueError(f"{groups} groups are not {kinds} to a layer, as granularity {granularity!r} has them")
    if damage is not None and granularity != "layer":
        raise ValueError("damage is of whole layers: it goes with granularity 'layer'; a trial log holds its own prior")
    bits = tuple(sorted({int(b) for plan in seen for b in plan.bits}))
    ranks = tuple(sorted({r for plan in seen for r in plan.ranks}))
    space = make_space(groups // kinds, granularity, shape, bits=bits, ranks=ranks)
    return space, None if damage is None else layer_prior(space, Path(damage)), seen


def layer_prior(space: SearchSpace, path: Path) -> Prior:
    """The prior of a space of layers, from untuned losses with one layer at 2 or at 3 bits."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    loss = {(row["layer"], row["bits"]): row["loss"] - measured.UNTUNED for row in rows}
    two, three = (np.maximum([loss[g, b] for g in range(len(space))], measured.LEAST_DAMAGE) for b in (2, 3))
    columns = [measured.damage_by_bits(two, three, bits) for bits in space.widths.tolist()]
    gain = np.tile(measured.HQQ.gain_at(np.array(space.ranks)) / len(space), (len(space), 1))
    return Prior(np.stack(columns, axis=1), gain, source="single layers, untuned")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit a surrogate to trial logs and print its held-out error.")
    parser.add_argument("logs", nargs="+", help="trial logs, or JSONL of bits, ranks, loss")
    parser.add_argument("--damage", help="JSONL of layer, bits, loss: the prior of JSONL logs")
    parser.add_argument("--granularity", default="layer", choices=list(KINDS), help="of plain JSONL")
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    record = read_record(options.logs, damage=options.damage, granularity=options.granularity)
    evaluator = RecordedEvaluator(record)
    loss = evaluator.record.loss
    print(f"{len(loss)} plans of {len(evaluator.space)} groups, loss {loss.min():.4f} to {loss.max():.4f}")
    print(f"deviation between seeds {evaluator.record.seed_noise:.4f}")
    print(evaluator.surrogate.summary())
    for name, value in evaluator.held_out(options.folds).items():
        print(f"{name} {value:.4f}")


if __name__ == "__main__":
    main()
