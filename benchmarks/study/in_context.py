"""Sensitivities at the unquantized model, and in context: at models on the way to a quantized one, averaged.

    python benchmarks/study/in_context.py --data DIR --cache BANK

Figures are measured with nothing quantized, with all linears at 4 bits, and at 3. Each set is scaled by the same groups
degraded for real. A plan's score is the sum over its groups, with the prior's gain of rank. The question is which
scores tell recorded evaluations apart: rank correlation with their losses in each recorded search, and the error of a
curve (loss = a + m (1 - exp(-score / m)), which lets damage saturate, or a straight line) fitted to other searches.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import protocol
from lines import RESULTS
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.sensitivities.cache import PRIOR_ROWS, probe_batch
from qra_eval.sensitivities.fisher import measure_fisher
from qra_eval.sensitivities.measure import degrade_groups, no_less_than_wider, probed, scale_damage
from qra_eval.tasks.batches import passed_together
from qra_search.log.recorded import recorded_space
from qra_search.log.trial_log import TrialLog

SEARCHES = ("qra", "additive", "nsga2", "qr_adaptor", "autoqra")
POINTS = (None, 4, 3)
"""Bits of all linears while figures are measured; None: nothing is quantized."""


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    options = parser.parse_args()
    _, commit = protocol.begin(parser, options)
    evaluator = protocol.evaluator("gsm8k", options.data, cache=options.cache)
    tables = damages(evaluator)
    gain = evaluator.sensitivities().rank_gain
    recorded = {name: trials(name, evaluator) for name in SEARCHES}
    row = {"commit": commit, "searches": {name: len(found[2]) for name, found in recorded.items()}}
    for way, damage in tables.items():
        scores = {name: score(damage, gain, bits, ranks) for name, (bits, ranks, _) in recorded.items()}
        losses = {name: found[2] for name, found in recorded.items()}
        row[way] = {
            "rank": {n: round(float(spearmanr(scores[n], losses[n]).statistic), 4) for n in SEARCHES},
            **{f"held-out error, {curve}": held_out(scores, losses, curve) for curve in ("line", "saturating")},
        }
    print(json.dumps(row, indent=1))
    with (RESULTS / "in_context.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def damages(evaluator: QuantizedLoRAEvaluator) -> dict[str, np.ndarray]:
    """Damage (G, B) by way of measuring, in nats."""
    bench, model, space = evaluator.workbench, evaluator.quantized, evaluator.space
    model.prepare()
    rows = bench.rows("calibration", PRIOR_ROWS)
    batches, kinds = passed_together(rows), [group.kind or group.name for group in space.groups]
    raw: dict[str, np.ndarray] = {}
    for bits in POINTS:
        if bits is None:
            model.unquantize()
        else:
            plan = space.uniform(bits, min(space.ranks))
            assert plan is not None
            bench.apply(plan, 0)  # adapters start at zero
        found = measure_fisher(bench, model.levels, batches).damage
        raw[f"at {bits or 16} bits"] = np.array([sum(found[m.name] for m in g.linears) for g in space.groups])
        print(f"measured at {bits or 16} bits", file=sys.stderr, flush=True)
    raw["mean of all"] = np.mean(list(raw.values()), axis=0)
    raw["mean of 16 and 4"] = (raw["at 16 bits"] + raw["at 4 bits"]) / 2
    with model.in_float32() as blocks:
        probes, _ = degrade_groups(bench, blocks, model.levels, probed(space), probe_batch(rows))
    return {way: no_less_than_wider(scale_damage(figures, kinds, probes), space.widths) for way, figures in raw.items()}


def trials(name: str, evaluator: QuantizedLoRAEvaluator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits and ranks (N, G), as indices, and losses (N,) of the full evaluations of a recorded search."""
    log = TrialLog(RESULTS / f"trials-gsm8k-{name}-module-0.jsonl")
    space = recorded_space(log)
    assert space.names == evaluator.space.names and space.bits == evaluator.space.bits
    whole = [t for t in log if t.evaluation is not None and t.fidelity == 1.0 and np.isfinite(t.loss)]
    bits, ranks = space.encode_many([t.plan for t in whole])
    return bits, ranks, np.array([t.loss for t in whole])


def score(damage: np.ndarray, gain: np.ndarray, bits: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    groups = np.arange(len(damage))
    return (damage[groups, bits] - gain[groups, ranks]).sum(1)


def held_out(scores: dict[str, np.ndarray], losses: dict[str, np.ndarray], curve: str) -> float:
    """Root mean squared error in nats over evaluations of each search, by a curve fitted to the other searches."""
    errors = []
    for name in scores:
        rest = [other for other in scores if other != name]
        x, y = np.concatenate([scores[n] for n in rest]), np.concatenate([losses[n] for n in rest])
        fitted = fit(x, y, curve)
        errors.append(losses[name] - value(fitted, scores[name], curve))
    return round(float(np.sqrt(np.mean(np.concatenate(errors) ** 2))), 5)


def fit(x: np.ndarray, y: np.ndarray, curve: str) -> np.ndarray:
    start = np.array([y.min(), 1.0, 0.0])
    return least_squares(lambda p: value(p, x, curve) - y, start, loss="soft_l1", f_scale=0.02).x


def value(p: np.ndarray, x: np.ndarray, curve: str) -> np.ndarray:
    """Loss by the parameters a, slope and log m of a curve."""
    slope = p[1] * x
    return p[0] + (slope if curve == "line" else np.exp(p[2]) * -np.expm1(-slope / np.exp(p[2])))


if __name__ == "__main__":
    main()
