"""How well the surrogate of the evaluator `recorded` predicts evaluations that it was not shown.

    python benchmarks/strategies/held_out.py LOG [LOG ...]
    python benchmarks/strategies/held_out.py --plain PLANS.jsonl [--damage DAMAGE.jsonl] [--granularity layer]

Reads trial logs or, with `--plain`, JSON lines of {"bits", "ranks", "loss"}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qra_eval.evaluators.recorded import Record, RecordedEvaluator, read_record, record_of
from qra_eval.landscapes import measured
from qra_eval.landscapes.damage_model import DamageModel, Fit, fit_surrogate
from qra_eval.landscapes.shapes import KINDS, make_space
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import Plan, SearchSpace

BROKEN_RISE = 1.0
"""Plans that lie so many nats above the best are called broken: the held-out error is printed without them too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+", type=Path, help="trial logs")
    parser.add_argument("--plain", action="store_true", help="JSONL of bits, ranks, loss in place of logs")
    parser.add_argument("--damage", help="JSONL of layer, bits, loss: the prior of plain JSONL")
    parser.add_argument("--granularity", default="layer", choices=list(KINDS), help="of plain JSONL")
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    if options.plain:
        record = read_plain(options.logs, options.damage, granularity=options.granularity)
    else:
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
    from scipy.stats import spearmanr

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


def read_plain(
    paths: Sequence[Path], damage: str | Path | None = None, shape: str = "smollm2", granularity: str = "layer"
) -> Record:
    """Read JSONL of {"bits", "ranks", "loss"}: plans of a decoder with the widths of `shape`.

    Args:
        granularity: one choice for each layer, module or set of fused modules.
        damage: JSONL of {"layer", "bits", "loss"}, untuned losses with one layer degraded: the prior.

    Raises:
        ValueError: too few evaluations, or plans that do not fit the granularity.
    """
    seen: dict[Plan, list[float]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            seen.setdefault(Plan.from_dict(row), []).append(float(row["loss"]))
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
    return record_of(space, None if damage is None else layer_prior(space, Path(damage)), seen)


def layer_prior(space: SearchSpace, path: Path) -> Sensitivities:
    """The prior of a space of layers, from untuned losses with one layer at 2 or at 3 bits."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    loss = {(row["layer"], row["bits"]): row["loss"] - measured.UNTUNED for row in rows}
    two, three = (np.maximum([loss[g, b] for g in range(len(space))], measured.LEAST_DAMAGE) for b in (2, 3))
    columns = [measured.damage_by_bits(two, three, bits) for bits in space.widths.tolist()]
    gain = np.tile(measured.HQQ.gain_at(np.array(space.ranks)) / len(space), (len(space), 1))
    return Sensitivities(np.stack(columns, axis=1), gain, source="single layers, untuned")


if __name__ == "__main__":
    main()
