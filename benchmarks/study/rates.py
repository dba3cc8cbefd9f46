"""The learning rate that short trials foretell, beside full tunings at a grid of rates: one line each, resumable.

    python -m benchmarks.study.rates --data DIR --task banking77 --steps 600
    python -m benchmarks.study.rates --data DIR --task banking77 --steps 600 --batch-size 16
    python -m benchmarks.study.rates --data DIR --task banking77 --steps 600 --epochs 3
    python -m benchmarks.study.rates --page docs/tuning.md

Uniform 2 bits, rank 8, as `qra finetune` tunes it. The grid lies around the foretold rate by factors of the square root
of two. Losses are of up to `TEST_ROWS` test rows and of `VALIDATION_ROWS` validation rows. `nats` are those of each
test row, of which intervals follow. Lines of an earlier slope have none: 500 test rows, and trials on 64 rows.
With `--epochs` the first training rows are all there are: as few as the steps then pass so often.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from benchmarks.study.finetunes_table import fill_page
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.example import SPLITS
from qra_search.app.evaluator import RateTrial
from qra_search.app.intervals import bootstrap_log_ratio
from qra_search.app.rates import foretell_rate, propose_next_trial

OUT = RESULTS / "study" / "rates.jsonl"
BITS, RANK = 2, 8
GRID = (0, 2, -2, 1, -1)
"""Places of full tunings, in factors of the square root of two from the foretold rate."""
SAME_RATE = 0.25
"""Factors of two between a rate of the grid and one that was tuned already, which then stands for it."""
VALIDATION_ROWS, TEST_ROWS = 64, 2000
DEFAULTS: dict[str, Any] = {"batch": 8, "epochs": None}
"""What a line has that does not say it."""
TRAIN_ROWS = {"banking77": 8497, "restaurant8k": 6766}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the task's files")
    parser.add_argument("--page", type=Path, help="put the table into a page, between its marks")
    parser.add_argument("--task", default="banking77")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=DEFAULTS["batch"])
    parser.add_argument("--epochs", type=float, help="that the steps are, over the first training rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.page:
        fill_page(options.page, "rates", list_table(read_lines(options.out)))
        return
    torch.set_num_threads(options.threads)
    evaluator = QuantizedLoRAEvaluator(
        {
            "model": {"name": options.model, "compute": "bfloat16"},
            "task": {"name": options.task, "data": options.data},
            "training": {"batch_size": options.batch_size},
            "quantization": {"embeddings": BITS},
            "space": {"bits": [BITS], "ranks": [RANK]},
            "evaluation": {"validation_rows": VALIDATION_ROWS},
            "finetune": {"test_rows": TEST_ROWS, "scored_rows": 0, "sample_answers": 0},
        }
    )
    task = evaluator.task
    rows = len(task.split("train"))
    if options.epochs:
        rows = round(options.steps * options.batch_size / options.epochs)
        task._splits = {name: task.split(name)[: rows if name == "train" else None] for name in SPLITS}
    plan = evaluator.space.uniform(BITS, RANK)
    assert plan is not None
    model = Path(options.model).stem
    shared = {"task": options.task, "model": model, "for_steps": options.steps}
    shared |= {"batch": options.batch_size, "epochs": options.epochs}
    machine = {"commit": find_commit(), "cpu": find_cpu_name(), "threads": options.threads}

    def read_own(kind: str) -> list[dict[str, Any]]:
        wanted = {**shared, "kind": kind}
        return [line for line in read_lines(options.out) if wanted.items() <= (DEFAULTS | line).items()]

    fields = RateTrial.__dataclass_fields__
    trials = [
        RateTrial(**{name: line[name] for name in fields} | {"loss": line["loss"] or math.inf})
        for line in read_own("trial")
    ]
    while (chosen := propose_next_trial(trials, options.steps)) is not None:
        rate, length = chosen
        whole = [trial for trial in trials if trial.steps == length == trial.made]
        beside = min(whole, key=lambda trial: trial.loss, default=None)
        trials.append(trial := evaluator.try_rate(plan, rate, length, beside=beside))
        loss = trial.loss if math.isfinite(trial.loss) else None
        append_lines(options.out, {**shared, "kind": "trial", **vars(trial), "loss": loss, **machine})
    foretold = foretell_rate(trials, options.steps)
    print(foretold, f"{rows} training rows", flush=True)
    for place in GRID:
        line = {**shared, "kind": "tuning", "place": place, "foretold": foretold.rate}
        rate = foretold.rate * 2 ** (place / 2)
        tuned = [known for known in read_own("tuning") if "nats" in known]
        is_near = [abs(math.log2(rate / known["rate"])) < SAME_RATE for known in tuned]
        if any(line.items() <= (DEFAULTS | known).items() for known in tuned) or place and any(is_near):
            continue
        evaluator.set_learning_rate(rate)
        record = evaluator.tune(plan, steps=options.steps)
        losses = {"validation_loss": record.validation_loss, "failed": record.failed}
        losses["test_loss"] = record.test_loss if math.isfinite(record.test_loss) else None
        losses["nats"] = [round(nats, 3) for nats in record.row_nats]
        cost = {"trials_cost": round(foretold.cost, 3), "deviation": round(foretold.deviation, 3)}
        append_lines(options.out, {**line, "rate": rate, **losses, **cost, **machine})
        print(f"  {rate:.4g}: test loss {record.test_loss:.4f}", flush=True)


def list_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """A row a model, task and length: the foretold rate beside the best of those tuned in full."""
    made: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "tuning" and "nats" in line and line["test_loss"] is not None:
            key = "model", "task", "for_steps", "batch", "epochs"
            made.setdefault(tuple((DEFAULTS | line)[name] for name in key), []).append(line)
    table = [
        "| model | task | steps | batch | epochs | trials cost | foretold | test loss | best rate | test loss "
        "| foretold worse by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (model, task, steps, batch, epochs), tuned in made.items():
        what = f"| {model} | {task} | {steps} | {batch} | {epochs or steps * batch / TRAIN_ROWS[task]:.2g} |"
        foretold = [line for line in tuned if line["place"] == 0]
        if not foretold:  # it diverged
            table.append(f"{what} | | diverged | | | |")
            continue
        own, best = foretold[-1], min(tuned, key=lambda line: line["test_loss"])
        worse, interval = own["test_loss"] / best["test_loss"] - 1, "the best"
        if best is not own and (found := bootstrap_log_ratio(own["nats"], best["nats"])):
            low, high = map(math.expm1, found)
            interval = f"{worse:.1%} ({low:.1%} to {high:.1%})"
        rates = f"{best['rate']:.2g} of {len(tuned)}"
        table.append(
            f"{what} {own['trials_cost']:.2f} | {own['rate']:.2g} | {own['test_loss']:.3f} "
            f"| {rates} | {best['test_loss']:.3f} | {interval} |"
        )
    return table


if __name__ == "__main__":
    main()
