"""Two ways to sum the Fisher figures, over a row's positions before squaring or after, against measured divergence.

python benchmarks/evaluator/fisher.py --task gsm8k --data DIR --groups 40

Groups are drawn at random and degraded for real, one at a time, at each width; kept are both figures and the KL
divergence of every pair, and how each figure follows it, with intervals from resampling the pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from commit import commit
from scipy.stats import spearmanr

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.sensitivities.cache import PRIOR_ROWS, probe_batch
from qra_eval.sensitivities.fisher import measure_fisher
from qra_eval.sensitivities.measure import degrade_groups
from qra_eval.tasks.batches import passed_together

RESULTS = Path(__file__).parents[1] / "results" / "fisher.jsonl"
RESAMPLED = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--groups", type=int, default=40)
    parser.add_argument("--cache", help="folder of the bank")
    options = parser.parse_args()
    evaluator = QuantizedLoRAEvaluator(
        options.model, {"name": options.task, "data": options.data}, quantization={"cache": options.cache}
    )
    bench, bits = evaluator.workbench, (2, 3, 4)
    model = evaluator.quantized
    model.prepare()
    model.unquantize()
    rows = bench.rows("calibration", PRIOR_ROWS)
    batches = passed_together(rows)
    figures = {way: measure_fisher(bench, bits, batches, by_row=way == "row").damage for way in ("row", "token")}
    chosen = np.random.default_rng(0).permutation(len(bench.space))[: options.groups].tolist()
    pairs = [(g, k) for g in chosen for k in range(len(bits))]
    with model.in_float32() as blocks:
        found, _ = degrade_groups(bench, blocks, bits, pairs, probe_batch(rows))
    kept = []
    for g, k, kl in found:
        names = [linear.name for linear in bench.space.groups[g].linears]
        row = {"group": bench.space.names[g], "bits": bits[k], "kl": kl}
        kept.append(row | {way: float(sum(figures[way][name][k] for name in names)) for way in figures})
    summary = {"model": options.model, "task": options.task, "groups": len(chosen), "commit": commit()}
    for way in figures:
        summary[way] = {name: agreement(rows, way) for name, rows in by_bits(kept).items()}
    print(json.dumps(summary, indent=1))
    with RESULTS.open("a") as file:
        file.write(json.dumps({**summary, "pairs": kept}) + "\n")


def by_bits(kept: list[dict]) -> dict[str, list[dict]]:
    """All pairs, and those of each width."""
    widths = sorted({row["bits"] for row in kept})
    return {"all": kept, **{str(b): [row for row in kept if row["bits"] == b] for b in widths}}


def agreement(rows: list[dict], way: str) -> dict[str, list[float]]:
    """Rank correlation, and correlation of logarithms, each with its 95% interval."""
    pairs = np.array([(row[way], row["kl"]) for row in rows if row[way] > 0 and row["kl"] > 1e-8])
    rng = np.random.default_rng(0)
    samples = [pairs[rng.integers(0, len(pairs), len(pairs))] for _ in range(RESAMPLED)]
    measures = {
        "rank": lambda p: float(spearmanr(p[:, 0], p[:, 1]).statistic),
        "log": lambda p: float(np.corrcoef(np.log(p), rowvar=False)[0, 1]),
    }
    return {
        name: [round(x, 4) for x in (measure(pairs), *np.quantile([measure(s) for s in samples], (0.025, 0.975)))]
        for name, measure in measures.items()
    }


if __name__ == "__main__":
    main()
