"""Two ways to measure a group's damage, against what tuning with that group alone degraded really loses.

    python benchmarks/evaluator/prior_comparison.py --groups 24 --set training.steps=6 --out FILE.jsonl

The ways: Fisher-weighted quantization error from one backward pass, scaled by a few probes (the default prior), and the
KL divergence of the prediction with the group degraded, each pass begun at the group's layer. The truth: the held-out
loss after tuning with the group at few bits and all others unquantized, less the loss with none degraded. Every figure
is appended to FILE as it comes, and is not measured again when the script goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from commit import commit
from rank_correlation import correlation

from qra_eval.evaluators.quantized_lora import build
from qra_eval.sensitivities.cache import PRIOR_ROWS
from qra_eval.sensitivities.measure import degrade_groups
from qra_eval.tasks.batches import bucketed
from qra_search.cli.common import pair
from qra_search.config import make_config
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--groups", type=int, default=24, help="drawn at random, each at the fewest bits")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of qra search")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prior_comparison.jsonl"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    fields = {"model.name": options.model, "task.name": options.task, "task.data": options.data}
    fields |= {"space.bits": [2, 3, 4, 8, UNQUANTIZED_BITS], **dict(map(pair, options.set))}
    evaluator = build(make_config({}, {k: v for k, v in fields.items() if v is not None}))
    space, lowest = evaluator.space, evaluator.space.bits[0]
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {r["group"]: r for r in known if r["what"] == "group"}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(record: dict) -> dict:
        with options.out.open("a") as file:
            file.write(json.dumps({"commit": commit(), **record}) + "\n")
        return record

    def tuned(degraded: int | None) -> float:
        bits = [UNQUANTIZED_BITS] * len(space)
        if degraded is not None:
            bits[degraded] = lowest
        return evaluator.evaluate(Plan(tuple(bits), (options.rank,) * len(space))).loss

    chosen = np.random.default_rng(0).permutation(len(space))[: options.groups].tolist()
    if any(g not in done for g in chosen):
        sensitivities = evaluator.sensitivities()
        whole = tuned(None)
        batch = bucketed(evaluator.rows("calibration", PRIOR_ROWS), evaluator.quantized.settings.batch_size)[0]
        start = time.perf_counter()
        with evaluator.quantized.in_float32() as blocks:
            pairs = [(g, 0) for g in chosen]
            divergence, tokens = degrade_groups(evaluator.workbench, blocks, [lowest], pairs, batch)
        seconds = time.perf_counter() - start
        costs = {
            "fisher": sensitivities.cost,
            "kl": tokens / evaluator.workbench.evaluation_tokens() * len(space) / len(chosen),
        }
        keep({"what": "costs", **costs, "kl_seconds": seconds, "bits": lowest, "setting": evaluator.describe()})
        for g, _, kl in divergence:
            if g not in done:
                row = {"what": "group", "group": g, "name": space.names[g], "kl": kl}
                row |= {"fisher": float(sensitivities.bits_damage[g, 0]), "retuned": tuned(g) - whole}
                done[g] = keep(row)
                print(f"{len(done)} of {len(chosen)} groups", file=sys.stderr, flush=True)
    rows = [done[g] for g in chosen]
    truth = np.array([r["retuned"] for r in rows])
    print("| prior | rank correlation with single-group retuning | 95% interval | groups |\n|---|---|---|---|")
    for way in ("fisher", "kl"):
        found = correlation(way, truth, np.array([r[way] for r in rows]), 0.0)
        print(f"| {way} | {found.rho:.2f} | {found.low:.2f} to {found.high:.2f} | {found.plans} |")


if __name__ == "__main__":
    main()
