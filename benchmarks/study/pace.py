"""Does rank help, or does it only learn faster? And which learning rate suits which beginning of the adapters?

    python benchmarks/study/pace.py --data DIR

An adapter is scaled by alpha over its rank. With alpha proportional to the rank every rank is scaled alike, and a
larger one moves the weights further at each step; with one alpha for all ranks it does not. Each row is the
final tuning of a uniform plan, measured on validation rows, and a line of `pace.jsonl`; rows that are there are not
made again. "adalora" is PEFT's AdaLoRA, whose singular values begin at zero between small random factors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import protocol
import torch
from final import tuned
from lines import RESULTS, read

from qra_eval.tasks.losses import row_losses

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
    (4, 8, 16, 8e-3),
    *((4, 8, 16, rate, "pissa") for rate in (2.5e-4, 5e-4, 1e-3, 2e-3)),
    *((4, 8, 16, rate, "eva") for rate in (2.5e-4, 5e-4, 1e-3)),
    *((4, 8, 16, rate, "loftq") for rate in (2e-3, 4e-3, 8e-3)),
    *((4, 8, 16, rate, "adalora") for rate in (1e-2, 2e-2, 4e-2, 1e-1)),
)
"""Bits, rank, alpha, learning rate, beginning."""
KEYS = ("bits", "rank", "alpha", "learning_rate", "init")
VALIDATION_ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "pace.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = read(options.out)
    evaluator = protocol.evaluator("gsm8k", options.data, ranks=(2, 4, 8, 32))
    for bits, rank, alpha, rate, *init in CASES:
        case = {
            "bits": bits,
            "rank": rank,
            "alpha": alpha,
            "learning_rate": rate,
            **({"init": init[0]} if init else {}),
        }
        if any(case == {k: row[k] for k in KEYS if k in row} for row in rows):
            continue
        evaluator.quantized.settings = protocol.TRAINING.model_copy(
            update={"alpha": float(alpha), "learning_rate": rate}
        )
        model, _ = tuned(evaluator, evaluator.space.uniform(bits, rank), 0, *init)
        losses, tokens = row_losses(model, evaluator.rows("validation", VALIDATION_ROWS), 8, evaluator.workbench.device)
        loss = sum(losses) / sum(tokens)
        rows.append({**case, "steps": protocol.FINETUNE.steps, "validation_loss": round(loss, 5)})
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print("| bits | rank | alpha | learning rate | beginning | validation loss |\n|---|---|---|---|---|---|")
    for row in ({"init": "default"} | row for row in rows):
        print("| {bits} | {rank} | {alpha} | {learning_rate:g} | {init} | {validation_loss:.4f} |".format(**row))


if __name__ == "__main__":
    main()
