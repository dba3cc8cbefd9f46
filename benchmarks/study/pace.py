"""Does rank help, or does it only learn faster? Uniform plans tuned at several ranks, alphas and learning rates.

    python benchmarks/study/pace.py --data DIR

An adapter is scaled by alpha over its rank. With alpha proportional to the rank every rank is scaled alike, and a
larger one moves the weights further at each step; with one alpha for all ranks it does not. Each row is a tuning of the
study's final length, measured on validation rows, and a line of `pace.jsonl`; rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import protocol
import torch

RESULTS = Path(__file__).parents[1] / "results" / "study"
CASES = (
    (4, 8, 16, 5e-4),
    (4, 32, 64, 5e-4),
    (4, 32, 16, 5e-4),
    (4, 8, 16, 2e-3),
    (4, 32, 16, 2e-3),
    (4, 8, 16, 1e-3),
    (4, 4, 16, 5e-4),
    (4, 4, 8, 5e-4),
    (4, 8, 16, 4e-3),
)
"""Bits, rank, alpha, learning rate."""
VALIDATION_ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "pace.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    evaluator = protocol.evaluator("gsm8k", options.data, ranks=(2, 4, 8, 32))
    for bits, rank, alpha, rate in CASES:
        case = {"bits": bits, "rank": rank, "alpha": alpha, "learning_rate": rate}
        if any(case.items() <= row.items() for row in rows):
            continue
        evaluator.settings = protocol.TRAINING.model_copy(update={"alpha": float(alpha), "learning_rate": rate})
        evaluator.apply(evaluator.space.uniform(bits, rank), 0)
        evaluator.train(protocol.TRAINING.final_steps, 0)
        loss = evaluator.held_out("validation", VALIDATION_ROWS)
        rows.append({**case, "steps": protocol.TRAINING.final_steps, "validation_loss": round(loss, 5)})
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print("| bits | rank | alpha | learning rate | validation loss |\n|---|---|---|---|---|")
    for row in rows:
        print("| {bits} | {rank} | {alpha} | {learning_rate:g} | {validation_loss:.4f} |".format(**row))


if __name__ == "__main__":
    main()
