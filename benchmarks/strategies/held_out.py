"""How well the surrogate of the evaluator `recorded` predicts evaluations that it was not shown.

python benchmarks/strategies/held_out.py LOG [LOG ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from qra_eval.evaluators.recorded import Record, RecordedEvaluator, read_record
from qra_eval.landscapes.damage_model import DamageModel, Fit, fit_surrogate
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import SearchSpace

BROKEN_RISE = 1.0
"""Plans that lie so many nats above the best are called broken: the held-out error is printed without them too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+", type=Path, help="trial logs")
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    record = read_record(options.logs)
    loss = record.loss
    print(f"{len(loss)} plans of {len(record.space)} groups, loss {loss.min():.4f} to {loss.max():.4f}")
    print(f"deviation between seeds {record.seed_noise:.4f}")
    print(summary(RecordedEvaluator(record).surrogate))
    for name, value in cross_validate(record.space, record.sensitivities, fit_of(record), options.folds).items():
        print(f"{name} {value:.4f}")


def fit_of(record: Record) -> Fit:
    """What the evaluator's surrogate is fitted to."""
    return Fit(record.b, record.r, record.loss, record.seed_noise / np.sqrt(record.replicates))


def cross_validate(
    space: SearchSpace, sensitivities: Sensitivities | None, data: Fit, folds: int = 5
) -> dict[str, float]:
    """Errors on held-out plans, everything fitted anew in every fold.

    Returns:
        `rmse` in nats over all plans, `rmse_good` over those less than `BROKEN_RISE` above the best, `spread_good`,
        their standard deviation (what a constant would leave), `r2_good`, and `rank_correlation_good` (Spearman).
    """
    fold = np.random.default_rng(0).permutation(len(data.loss)) % folds
    predicted = np.empty(len(data.loss))
    for k in range(folds):
        model = fit_surrogate(
            space, sensitivities, Fit(*(values[fold != k] for values in (data.b, data.r, data.loss, data.noise)))
        )
        predicted[fold == k] = model.losses(data.b[fold == k], data.r[fold == k])
    error = predicted - data.loss
    good = data.loss < data.loss.min() + BROKEN_RISE
    spread = float(data.loss[good].std())
    rmse = float(np.sqrt(np.mean(error[good] ** 2)))
    return {
        "plans": float(len(error)),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "rmse_good": rmse,
        "spread_good": spread,
        "r2_good": 1.0 - (rmse / spread) ** 2 if spread > 0 else float("nan"),
        "rank_correlation_good": float(spearmanr(predicted[good], data.loss[good]).statistic),
    }


def summary(model: DamageModel) -> str:
    """The constants and widths, as one line of text."""
    c, w = model.constants, model.widths
    level = ", ".join(f"{x:.3g}" for x in c.level)
    return (
        f"base {c.base:.3f}, gain {c.gain:.3f} at half by rank {c.gain_rank:.2f}, repair power {c.power:.3f} from "
        f"rank {c.repair_rank:.2f}, cap {c.cap:.1f}, own damage {c.own:.2f}, levels {level}; widths: group "
        f"{w[0]:.3f}, group and rank {w[1]:.3f}, residual {w[2]:.3f} over {w[3]:.2f} of groups, error {w[4]:.3f}"
    )


if __name__ == "__main__":
    main()
