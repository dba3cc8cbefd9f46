"""How many calibration rows the quantizer and the prior need: losses of uniform plans, and how alike priors are.

    python benchmarks/study/calibration.py --data DIR

The quantizer is calibrated on 32, 128 and 512 training rows (128 is what searches do); each time the validation loss of
uniform 2, 3 and 4 bits is taken untuned and after an evaluation's tuning, two seeds. The prior is measured on 4, 16 and
64 rows (16 is what searches do), with the quantizer as it is; its damages at 2 and 3 bits are ranked like those of the
largest, over all linears. Lines of `calibration.jsonl` that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import protocol
import torch
from lines import RESULTS, read
from scipy.stats import spearmanr

from qra_eval.quantized import model as quantized_model
from qra_eval.sensitivities import cache as priors

QUANTIZER_ROWS = (128, 32, 512)
PRIOR_ROWS = (64, 16, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = read(options.out)

    def keep(row: dict) -> None:
        print(row, flush=True)
        done.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    kept = priors.PRIOR_ROWS
    damages = None
    for rows in PRIOR_ROWS:
        if any(d.get("prior_rows") == PRIOR_ROWS[-1] for d in done):
            break
        priors.PRIOR_ROWS = rows
        sensitivities = protocol.evaluator("gsm8k", options.data).sensitivities()
        damages = sensitivities.bits_damage if damages is None else damages
        alike = {f"{b}-bit": round(float(spearmanr(damages[:, i], sensitivities.bits_damage[:, i])[0]), 4)
                 for i, b in enumerate((2, 3))}  # fmt: skip
        keep({"prior_rows": rows, "rank_correlation_with_largest": alike, "cost": round(sensitivities.cost, 3)})
    priors.PRIOR_ROWS = kept
    for rows in QUANTIZER_ROWS:
        quantized_model.CALIBRATION_ROWS = rows
        evaluator = None
        for bits in (2, 3, 4):
            if any((d.get("quantizer_rows"), d.get("bits")) == (rows, bits) for d in done):
                continue
            evaluator = evaluator or protocol.evaluator("gsm8k", options.data)
            plan = evaluator.space.uniform(bits, 8)
            evaluator.workbench.apply(plan, 0)
            untuned = evaluator.workbench.held_out("validation", protocol.EVALUATION.validation_rows)
            tuned = [round(evaluator.evaluate(plan, seed=seed).loss, 5) for seed in (0, 1)]
            compute = str(evaluator.quantized.compute).removeprefix("torch.")
            keep(
                {"quantizer_rows": rows, "bits": bits, "untuned": round(untuned, 5), "tuned": tuned, "compute": compute}
            )


if __name__ == "__main__":
    main()
