"""Fit the constants of the parametric landscapes to recorded evaluations, and print the held-out error.

    python benchmarks/strategies/calibrate.py TUNED.jsonl [MORE.jsonl ...] [--check]
    python benchmarks/strategies/calibrate.py --modules TRIALS.jsonl [MORE.jsonl ...]

The first for seven families: each line of a log is {"bits": [...], "ranks": [...], "loss": ...}, one entry a layer,
as tuned on the model that `qra_eval.landscapes.measured` describes; its single-layer damages are in that module, and
what is printed as constants stands there. `--check` asks the landscapes to look like the real thing: the same plans are
evaluated on landscapes, the same fit is made, and the error that it leaves is compared with that on the real log.

The second for the family `calibrated`: the logs are those of searches with one choice a module, exported as JSONL. The
surrogate of `qra_eval.evaluators.recorded` is fitted to them, and what it says of layers and kinds of modules is
printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from qra_eval.evaluators.landscape import make_landscape
from qra_eval.evaluators.recorded import Record, RecordedEvaluator, read_record
from qra_eval.landscapes import FAMILIES, measured

sys.path.insert(0, str(Path(__file__).parent))
from held_out import cross_validate, fit_of, summary  # noqa: E402

NAMES = ("GAIN", "GAIN_RANK", "REPAIR_POWER", "REPAIR_RANK", "FOUR_BITS", "SHRINK_3", "CAP")
START = np.array([0.65, 2.2, 0.5, 2.0, 0.11, 0.75, 12.0])
SPREAD = np.array([0.2, 2.0, 0.3, 2.0, 0.1, 0.3, 6.0])
"""Where the fit starts, and how weakly it is held there (standard deviations)."""
FLOOR, SHARE = 0.006, 0.05
"""Assumed error of a loss: the spread of seeds, and a share of the rise above the best."""
GOOD = 2.2
"""Losses above are broken plans, which the printed error in nats leaves out (the relative one has them)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+", type=Path, help="JSONL of bits, ranks and loss")
    parser.add_argument("--check", action="store_true", help="compare with the same fit to landscapes")
    parser.add_argument("--seeds", type=int, default=8, help="landscapes of each family in the check")
    parser.add_argument("--modules", action="store_true", help="logs of searches with one choice a module")
    options = parser.parse_args()
    if options.modules:
        by_modules(read_record(options.logs))
        return
    bits, ranks, loss = read_logs(options.logs)
    print(f"{len(loss)} plans of {bits.shape[1]} layers, loss {loss.min():.3f} to {loss.max():.3f}")
    predict = layer_model(bits, ranks, measured.DAMAGE_2, np.array(measured.LAYER_LOSS_3) - measured.UNTUNED)
    fitted = fit(predict, loss)
    print("\n".join(f"{name} = {value:.3f}" for name, value in zip(NAMES, fitted, strict=True)))
    report("real log", loss, predict(fitted), leave_one_out(predict, loss))
    if options.check:
        for family, traits in FAMILIES.items():
            if not traits.uneven and traits.source is measured.HQQ:
                check(family, bits, ranks, options.seeds)


def by_modules(record: Record) -> None:
    """Print what `measured.GPTQ` holds: the fitted surrogate's damage, summed over modules and over layers.

    What the log hardly varies it does not teach: no bit-width's damage is scaled up more than that of fewer bits.
    """
    evaluator = RecordedEvaluator(record)
    model, space = evaluator.surrogate, record.space
    constants = model.constants
    own = constants.own
    damage = np.minimum.accumulate(constants.level) * (own * model.damage + (1 - own) * model.pooled)
    depth = np.array([group.depth for group in space.groups])
    kinds = [group.kind for group in space.groups]
    for k, bits in enumerate(space.bits):
        of_layer = np.bincount(depth, damage[:, k])
        share = {kind: damage[[x == kind for x in kinds], k].sum() / of_layer.sum() for kind in dict.fromkeys(kinds)}
        print(f"LAYERS {bits}: " + ", ".join(f"{x:.3g}" for x in of_layer))
        print(f"KINDS {bits}: " + ", ".join(f'"{kind}": {x:.4f}' for kind, x in share.items()))
        plain = np.array([of_layer[d] * share[kind] for d, kind in zip(depth, kinds, strict=True)])
        print(f"spread of modules beyond layer and kind, {bits} bits: {np.log(damage[:, k] / plain).std():.3f}")
    print(summary(model))
    error = cross_validate(space, record.sensitivities, fit_of(record))
    print(f"deviation between seeds {record.seed_noise:.4f}; {len(record.loss)} plans; {error}")


def read_logs(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits (N, L), ranks (N, L) and losses (N,) of the distinct plans; replicates are averaged."""
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            seen.setdefault((tuple(row["bits"]), tuple(row["ranks"])), []).append(row["loss"])
    return (
        np.array([plan[0] for plan in seen]),
        np.array([plan[1] for plan in seen]),
        np.array([float(np.mean(v)) for v in seen.values()]),
    )


def layer_model(
    bits: np.ndarray, ranks: np.ndarray, damage_2: np.ndarray, damage_3: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """The landscape without interaction, as a function from the constants of `NAMES` to losses (N,)."""
    ratio = damage_3.sum() / damage_2.sum()

    def predict(constants: np.ndarray) -> np.ndarray:
        gain, gain_rank, power, repair_rank, four, shrink, cap = constants
        three = np.maximum(shrink * damage_3 + (1 - shrink) * damage_2 * ratio, measured.LEAST_DAMAGE)
        high = np.where(bits >= 16, 0.0, four * 4.0 ** (4.0 - bits)) * three
        damage = np.where(bits == 2, damage_2, np.where(bits == 3, three, high))
        left = (damage * (1.0 + ranks / repair_rank) ** -power).sum(1)
        gains = (gain * ranks / (ranks + gain_rank)).mean(1)
        return measured.UNTUNED - gains + cap * -np.expm1(-left / cap)

    return predict


def fit(predict: Callable[[np.ndarray], np.ndarray], loss: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """Constants (7,) by least squares on the rows of `keep`, weakly held at `START`."""
    keep = np.arange(len(loss)) if keep is None else keep
    error = FLOOR + SHARE * np.maximum(loss - loss.min(), 0.0)

    def residuals(constants: np.ndarray) -> np.ndarray:
        off = (predict(constants) - loss) / error
        return np.concatenate([off[keep], 0.7 * (constants - START) / SPREAD])

    bounds = (np.full(len(START), 1e-3), np.array([2.0, 30.0, 3.0, 30.0, 1.0, 1.0, 60.0]))
    return least_squares(residuals, START, bounds=bounds).x


def leave_one_out(predict: Callable[[np.ndarray], np.ndarray], loss: np.ndarray) -> np.ndarray:
    """Prediction (N,) of every loss by the fit to all others."""
    rows = np.arange(len(loss))
    return np.array([predict(fit(predict, loss, np.delete(rows, i)))[i] for i in rows])


def report(name: str, loss: np.ndarray, inside: np.ndarray, held_out: np.ndarray) -> None:
    """Print the root mean square error of a fit, in its own rows and in held-out ones."""
    good, rise = loss < GOOD, loss - loss.min() + 0.07
    print(
        f"{name}: rms error below {GOOD} nats {_rms((inside - loss)[good]):.4f} fitted, "
        f"{_rms((held_out - loss)[good]):.4f} held out (spread {loss[good].std():.3f}); "
        f"all plans, relative to the rise: {_rms((inside - loss) / rise):.3f} fitted, "
        f"{_rms((held_out - loss) / rise):.3f} held out"
    )


def check(family: str, bits: np.ndarray, ranks: np.ndarray, seeds: int) -> None:
    """The same plans, noise and fit on landscapes of a family; prints the median over seeds."""
    rows = []
    for seed in range(seeds):
        landscape = make_landscape(family, bits.shape[1], "layer", seed, bits=(2, 3, 4, 8, 16))
        b = np.searchsorted(landscape.space.bits, bits)
        r = np.searchsorted(landscape.space.ranks, ranks)
        true = landscape.true_losses(b, r)
        noise = np.random.default_rng(seed).normal(0.0, [landscape.noise_at(x) for x in true])
        damage = landscape.tables.damage
        predict = layer_model(bits, ranks, damage[:, 0], damage[:, 1])
        rows.append((true + noise, predict(fit(predict, true + noise))))
    good = [_rms((inside - loss)[loss < GOOD]) for loss, inside in rows]
    relative = [_rms((inside - loss) / (loss - loss.min() + 0.07)) for loss, inside in rows]
    low, high = np.min([loss.min() for loss, _ in rows]), np.max([loss.max() for loss, _ in rows])
    print(
        f"{family}: rms error of the same fit below {GOOD} nats {np.median(good):.4f} "
        f"({min(good):.4f} to {max(good):.4f}), relative {np.median(relative):.3f}; losses {low:.2f} to {high:.2f}"
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


if __name__ == "__main__":
    main()
