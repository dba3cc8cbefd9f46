"""A full tuning killed with SIGKILL again and again, and its tokens a second beside transformers' Trainer with PEFT.

    python benchmarks/evaluator/tuning.py kill --kills 20
    python benchmarks/evaluator/tuning.py speed --model smollm2 --steps 6

`kill`: one tuning (dropout, accumulated batches, looks at the validation loss) is killed at so many random steps and
resumed each time; adapters and curve are compared, bit by bit, with those of one that nobody disturbed. `speed`: the
same rows, batches, bits and ranks, by our loop and by Trainer on PEFT's model, by turns; read the ratio.
Each writes a line of benchmarks/results/tuning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from commit import commit
from safetensors.torch import load_file

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.batches import Batch
from qra_eval.tasks.encoding import IGNORED

CACHE = "bank"
FORK = multiprocessing.get_context("fork")
"""A child begins with everything imported: 20 kills take a minute, not ten."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "speed"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0, help="of the steps that are killed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop")
    parser.add_argument("--cache", help="folder of the bank; default: a temporary one")
    parser.add_argument("--backend", default="bitsandbytes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuning.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = (kill if options.what == "kill" else speed)(options, Path(folder))
    row = {"what": options.what, "commit": commit(), "model": options.model, "threads": torch.get_num_threads(), **row}
    print(json.dumps(row, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


# -- killed and resumed ----------------------------------------------------------------------------
def kill(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kills a tuning at random steps, and compares where it ends with one that was not."""
    draw = random.Random(options.seed)
    run(options, folder / "whole", None)
    at = []
    for step in sorted(draw.randrange(1, options.steps) for _ in range(options.kills)):
        at.append(run(options, folder / "broken", step))
    run(options, folder / "broken", None)
    one, two = (load_file(folder / name / "run/adapter/adapter_model.safetensors") for name in ("whole", "broken"))
    same = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    curves = [(folder / name / "kept/curve.jsonl").read_text() for name in ("whole", "broken")]
    return {
        "steps": options.steps, "kills": len(at), "killed_after_steps": at, "tensors": len(one),
        "weights_equal_to_the_bit": same, "curves_equal": curves[0] == curves[1],
    }  # fmt: skip


def run(options: argparse.Namespace, folder: Path, kill_at: int | None) -> int:
    """Tune in a process of its own, which is killed once the curve has so many steps; returns the steps it had."""
    process = FORK.Process(target=tune, args=(options, folder))
    process.start()
    while process.is_alive():
        if kill_at is not None and done(folder) >= kill_at:
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            break
        time.sleep(0.001)
    process.join()
    if kill_at is None and process.exitcode != 0:
        raise SystemExit(f"the tuning failed with status {process.exitcode}")
    return done(folder)


def done(folder: Path) -> int:
    path = folder / "kept/curve.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def tune(options: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    evaluator = QuantizedLoRAEvaluator(
        options.model, options.task,
        quantization={"backend": "reference", "cache": str(folder.parent / CACHE)},
        space={"bits": (2, 4), "ranks": (4, 8), "granularity": "layer"},
        training={"batch_size": 2, "accumulation": 2, "dropout": 0.1, "schedule": "cosine", "weight_decay": 0.01,
                  "evaluate_every": 7, "checkpoint_every": 3, "validation_rows": 8, "test_rows": 8, "max_length": 96},
    )  # fmt: skip
    plan = evaluator.space.uniform(4, 8)
    evaluator.tune(plan, seed=1, steps=options.steps, folder=folder / "run", kept=folder / "kept")


# -- how fast --------------------------------------------------------------------------------------
def speed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tokens a second of both loops on the same batches, by turns; each turn is timed as a whole, after one step."""
    evaluator = QuantizedLoRAEvaluator(
        options.model, {"name": options.task, "data": options.data},
        quantization={
            "backend": options.backend, "embeddings": 16, "cache": options.cache or str(folder / CACHE),
        },
        space={"bits": (4,), "ranks": (8,)}, training={"batch_size": 8},
    )  # fmt: skip
    bench, plan = evaluator.workbench, evaluator.space.uniform(4, 8)
    batches = bench.final_batches(options.steps, 0)
    bench.apply(plan, 0)
    bench.train(1, 0)
    theirs = peft_model(options, evaluator)
    rates: dict[str, list[float]] = {"qra": [], "trainer": []}
    for _ in range(options.rounds):
        bench.apply(plan, 0)
        trained = bench.train(options.steps, 0, batches=batches)
        rates["qra"].append(trained.tokens / trained.seconds)
        start = time.perf_counter()
        trainer(theirs, batches, folder)
        rates["trainer"].append(trained.tokens / (time.perf_counter() - start))
    best = {name: max(values) for name, values in rates.items()}
    return {
        "task": options.task, "backend": options.backend, "steps": options.steps, "tokens": trained.tokens,
        "compute": str(evaluator.quantized.compute), "tokens_a_second": rates, "ratio": best["qra"] / best["trainer"],
    }  # fmt: skip


def peft_model(options: argparse.Namespace, evaluator: QuantizedLoRAEvaluator) -> Any:
    """The same quantized linears with PEFT's adapters of the same ranks around them."""
    from peft import LoraConfig, get_peft_model
    from qra_backends import make_backend

    from qra_eval.models.linears import find_linears
    from qra_eval.models.load import load_model

    loaded, backend = load_model(options.model), make_backend(options.backend)
    found = find_linears(loaded.model)
    for linear in found:
        loaded.model.set_submodule(linear.name, backend.quantize(linear.module, 4))
    names = [linear.name for linear in found]
    config = LoraConfig(r=8, lora_alpha=evaluator.workbench.settings.alpha, target_modules=names, task_type="CAUSAL_LM")
    return get_peft_model(loaded.model, config)


def trainer(model: Any, batches: list[Batch], folder: Path) -> None:
    """Trainer over the very batches, one a step."""
    import transformers

    settings = transformers.TrainingArguments(
        str(folder / "trainer"), per_device_train_batch_size=1, max_steps=len(batches), learning_rate=1e-3,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False, logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    rows = [as_features(batch) for batch in batches]
    made = transformers.Trainer(model=model, args=settings, train_dataset=rows, data_collator=lambda some: some[0])
    made.train()


def as_features(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch as a causal language model takes it: labels at their own places."""
    ids = batch.input_ids
    labels = torch.full((ids.numel(),), IGNORED)
    labels[batch.positions + 1] = batch.targets
    return {"input_ids": ids, "labels": labels.view_as(ids), "attention_mask": torch.ones_like(ids)}


if __name__ == "__main__":
    main()
