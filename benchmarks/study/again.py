"""Evaluates the first trials of a recorded search again, on this machine, and prints both losses.

    python benchmarks/study/again.py benchmarks/results/study/trials-SEARCH.jsonl --data DIR --compute float32

Whether another machine gives the same search: the same losses give the same proposals. The quantized weights are made
here as well, calibration included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import protocol
import torch
from lines import RESULTS

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig
from qra_search.log.trial_log import TrialLog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--data", required=True, type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--compute", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "again.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trials = [t for t in TrialLog(options.log) if t.evaluation is not None][: options.trials]
    evaluator = QuantizedLoRAEvaluator(
        protocol.MODEL,
        TaskConfig(name="gsm8k", data=options.data),
        quantization=QuantizationConfig(backend=protocol.BACKEND, embeddings=16),
        space=SpaceConfig(bits=protocol.BITS, ranks=protocol.RANKS, granularity="module"),
        training=protocol.TRAINING,
        compute=options.compute,
    )
    for trial in trials:
        loss = evaluator.evaluate(trial.plan, seed=trial.proposal.seed, fidelity=trial.proposal.fidelity).loss
        row = {"log": options.log.name, "trial": trial.id, "origin": trial.proposal.origin, "recorded": trial.loss}
        compute = str(evaluator.quantized.compute).removeprefix("torch.")
        row |= {"again": loss, "compute": compute, "threads": options.threads}
        print(f"{trial.id:3} {trial.loss:.6f} {loss:.6f} {loss - trial.loss:+.6f}", flush=True)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
