"""Compares the project's task scores with those of lm-evaluation-harness, on the same model and the same rows.

    pip install "lm_eval[hf]"
    python -m benchmarks.agreement.harness --data DIR

DIR holds `<task>_test.jsonl` and `<task>_train.jsonl`. The harness uses its own prompts and metrics; it reads the first
rows of the test file, and so does the project's task here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.common import RESULTS, append, commit
from qra_eval.harness import Harness
from qra_eval.models.load import load_model
from qra_eval.tasks import make_task
from qra_eval.tasks.sources import folder_rows

METRICS = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
"""Names of the harness' metrics, and those of the project's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", default="arc_easy,arc_challenge,openbookqa")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--dtype", default="float32", help="in half precision batches of other shapes round otherwise")
    parser.add_argument("--out", type=Path, default=RESULTS / "harness_agreement.jsonl")
    options = parser.parse_args()
    names = options.tasks.split(",")
    loaded = load_model(options.model, dtype=getattr(torch, options.dtype))
    theirs = Harness(names, data=options.data, limit=options.rows, shots=0).score(loaded.model, loaded.tokenizer)
    for name in names:
        task = make_task(name, data=options.data)
        first = [row["question"] for _, row in folder_rows(options.data, name, "test")][: options.rows]
        by_prompt = {e.prompt: e for e in task.split("test")}
        same = [by_prompt.get(question) or by_prompt[f"Question: {question}\nAnswer:"] for question in first]
        ours = task.metrics(loaded.model, loaded.tokenizer, same)
        row = {"commit": commit(), "model": options.model, "task": name, "rows": len(first), "dtype": options.dtype}
        for score in theirs:
            if score.task == name and score.metric in METRICS:
                row[score.metric] = {"harness": score.value, "qra": ours[METRICS[score.metric]], "rows": score.rows}
        print(json.dumps(row))
        append(options.out, row)


if __name__ == "__main__":
    main()
