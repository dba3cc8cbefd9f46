"""Evaluations an hour against the way of the public reference code, and how soon a warm search trains.

    python benchmarks/evaluator/reference_way.py --task gsm8k --data DIR --out benchmarks/results/reference_way.jsonl

The reference code starts a process for every plan, which loads the model, quantizes it at the plan's bits, wraps it
with PEFT, trains with transformers' Trainer and measures the held-out loss. This script does so for the same plans,
rows and steps as the evaluator, by turns, so that both see the same machine. A calibrated backend is calibrated in each
process, since nothing is kept between them. Read the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from commit import commit
from torch import nn

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized.calibration import Hessians
from qra_eval.quantized.model import CALIBRATION_ROWS
from qra_eval.tasks.batches import bucketed
from qra_eval.tasks.encoding import Encoded
from qra_search.config import QuantizationConfig, TaskConfig, TrainingConfig
from qra_search.space.space import Plan

PLANS = ((3, 8), (4, 4))
WARM = """
import time
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import QuantizationConfig, TaskConfig, TrainingConfig
evaluator = QuantizedLoRAEvaluator({model!r}, TaskConfig(name={task!r}, data={data!r}),
    quantization=QuantizationConfig(backend={backend!r}),
    training=TrainingConfig(steps={steps}, batch_size={batch_size}, validation_rows={rows}))
evaluator.prior()
evaluator.workbench.apply(evaluator.space.uniform(3, 8), 0)
print(time.time())
evaluator.workbench.train(1, 0)
print(time.time())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--backend", default="reference", help="of both; what it costs to quantize is the difference")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32, help="held-out rows")
    parser.add_argument("--one", nargs=2, type=int, metavar=("BITS", "RANK"), help="the reference's way, one plan")
    parser.add_argument("--warm", action="store_true", help="only how soon a search trains that finds bank and prior")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reference_way.jsonl"))
    options = parser.parse_args()
    if options.one:
        print(reference(options, *options.one))
        return
    evaluator = build(options)
    evaluator.sensitivities()  # and the bank: what a search does once
    theirs, ours, pauses = [], [], []
    for bits, rank in () if options.warm else PLANS:
        start = time.perf_counter()
        command = [sys.executable, *sys.argv, "--one", str(bits), str(rank)]
        subprocess.run(command, check=True, capture_output=True)
        theirs.append(time.perf_counter() - start)
        start = time.perf_counter()
        done = evaluator.evaluate(Plan((bits,) * len(evaluator.space), (rank,) * len(evaluator.space)))
        ours.append(time.perf_counter() - start)
        pauses.append(ours[-1] - done.metrics["model_seconds"])
    settings = ("model", "task", "data", "backend", "steps", "batch_size", "rows")
    given = {name: getattr(options, name) for name in settings}
    begun = time.time()
    warm = subprocess.run([sys.executable, "-c", WARM.format(**given)], check=True, capture_output=True, text=True)
    row = {
        "commit": commit(),
        "threads": torch.get_num_threads(),
        **{k: v for k, v in given.items() if k != "data"},
        **({} if options.warm else {"reference_seconds": theirs, "qra_seconds": ours}),
        **({} if options.warm else {"ratio": sum(theirs) / sum(ours), "outside_the_model_seconds": pauses}),
        "warm_training_begins_after_seconds": float(warm.stdout.split()[-2]) - begun,
        "warm_first_step_done_after_seconds": float(warm.stdout.split()[-1]) - begun,
    }
    print(json.dumps(row, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def build(options: argparse.Namespace) -> QuantizedLoRAEvaluator:
    return QuantizedLoRAEvaluator(
        options.model,
        TaskConfig(name=options.task, data=options.data),
        quantization=QuantizationConfig(backend=options.backend),
        training=TrainingConfig(steps=options.steps, batch_size=options.batch_size, validation_rows=options.rows),
    )


def reference(options: argparse.Namespace, bits: int, rank: int) -> float:
    """Held-out loss of a plan, by a process of its own: load, quantize, wrap, train, measure."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from qra_backends import make_backend

    from qra_eval.models.linears import find_linears
    from qra_eval.models.load import load_model
    from qra_eval.tasks import make_task

    transformers.logging.set_verbosity_error()
    settings = TrainingConfig(steps=options.steps, batch_size=options.batch_size, validation_rows=options.rows)
    loaded, backend = load_model(options.model), make_backend(options.backend)
    task = make_task(options.task, data=options.data)
    splits = {"calibration": settings.steps * settings.batch_size, "validation": settings.validation_rows}
    if backend.calibrated:
        splits["calibration"] = max(splits["calibration"], CALIBRATION_ROWS)
    rows = {}
    for split, count in splits.items():
        encoded = task.encode(task.split(split)[:count], loaded.tokenizer, settings.max_length)
        rows[split] = [Encoded(torch.as_tensor(e.input_ids), torch.as_tensor(e.labels)) for e in encoded]
    found = find_linears(loaded.model)
    hessian = None
    if backend.calibrated:
        seen = bucketed(rows["calibration"][:CALIBRATION_ROWS], settings.batch_size)
        device = next(loaded.model.parameters()).device
        hessian = Hessians(loaded.model, {linear.name: linear.module for linear in found}, seen, device)
    for linear in found:
        moments = hessian(linear.name) if hessian else None
        loaded.model.set_submodule(linear.name, backend.quantize(linear.module, bits, hessian=moments))
    config = LoraConfig(
        r=rank, lora_alpha=settings.alpha, target_modules=[f.name for f in found], task_type="CAUSAL_LM"
    )
    model = get_peft_model(loaded.model, config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=[as_features(r) for r in rows["calibration"][: settings.steps * settings.batch_size]],
            eval_dataset=[as_features(r) for r in rows["validation"]],
            data_collator=collate,
        )
        trainer.train()
        return trainer.evaluate()["eval_loss"]


def as_features(row: Encoded) -> dict[str, torch.Tensor]:
    return {"input_ids": row.input_ids, "labels": row.labels, "attention_mask": torch.ones_like(row.input_ids)}


def collate(some: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    padding = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {k: nn.utils.rnn.pad_sequence([s[k] for s in some], True, v) for k, v in padding.items()}


if __name__ == "__main__":
    main()
