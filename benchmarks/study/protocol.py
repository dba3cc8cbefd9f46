"""What the study holds fixed: model, data, what an evaluation is, how a plan is tuned and measured, resumable runs."""

from __future__ import annotations

import re
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import MIB, append, commit, cpu_name, read
from benchmarks.common import RESULTS as ALL_RESULTS
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.losses import row_losses
from qra_search.config import (
    EvaluationConfig,
    FinetuneConfig,
    QuantizationConfig,
    SpaceConfig,
    TaskConfig,
    TrainingConfig,
)
from qra_search.space.space import Plan

RESULTS = ALL_RESULTS / "study"
MODEL = "smollm2"
BACKEND = "default-before-trellis"
SPECS: dict[str, Any] = {BACKEND: {**dict.fromkeys((2, 3, 4, 5, 6), "reference-gptq"), 8: "bitsandbytes-int8"}}
"""Of the searches, and of all that is beside them; later rounds name theirs."""
COMPUTE = "float32"
"""Pinned: a machine's choice between it and bfloat16 moves a loss by 0.1%. Lines say what theirs was."""
TRAINING = TrainingConfig(batch_size=4, max_length=160, learning_rate=2e-3, scales=False)
EVALUATION = EvaluationConfig(steps=12, validation_rows=64)
FINETUNE = FinetuneConfig(steps=36, test_rows=96)
"""One evaluation: 12 steps of 4 rows, then the loss on 64 held-out rows. The final tuning: 36 steps, 96 test rows.
The learning rate is the best of 5e-4, 1e-3, 2e-3 for uniform 4-bit plans on validation rows."""
OTHER_TASK = {"evaluation": {"validation_rows": 256}, "finetune": {"test_rows": 480}}
"""Of the other tasks: an answer has 5 tokens where GSM8K's has 110, so more rows are needed to tell plans apart."""
TASKS = ("gsm8k", "arc_easy", "arc_challenge")
BITS = (2, 3, 4, 8)
RANKS = (2, 4, 8, 16)
SEEDS = (0, 1, 2)
LEFT = 3
"""Exit status of a script that ended in time, with more to do."""
Job = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""What a line says to be known by, and what measures the rest of it."""


# -- evaluators --------------------------------------------------------------------------------
def settings(task: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """The sections `training`, `evaluation` and `finetune` of a task, with changes by section."""
    sections = {"training": TRAINING, "evaluation": EVALUATION, "finetune": FINETUNE}
    for update in ({} if task == "gsm8k" else OTHER_TASK, changes):
        for name, fields in update.items():
            sections[name] = sections[name].model_validate({**sections[name].model_dump(), **fields})
    return sections


def evaluator(
    task: str,
    data: str | Path,
    *,
    backend: Any = BACKEND,
    bits: tuple[int, ...] = BITS,
    ranks: tuple[int, ...] = RANKS,
    granularity: str = "module",
    embeddings: int | tuple[int, ...] = 16,
    model: str | None = None,
    cache: str | None = None,
    options: dict[str, Any] | None = None,
    dequantized_cache: str = "auto",
    compute: str = COMPUTE,
    **changes: dict[str, Any],
) -> QuantizedLoRAEvaluator:
    """The real evaluator under the study's settings, with changes of their sections, and a task's options."""
    return QuantizedLoRAEvaluator(
        model or MODEL,
        TaskConfig(name=task, data=str(data), options=options or {}),
        quantization=QuantizationConfig(backend=SPECS.get(str(backend), backend), embeddings=embeddings, cache=cache),
        space=SpaceConfig(bits=bits, ranks=ranks, granularity=granularity),  # type: ignore[arg-type]
        compute=compute,
        dequantized_cache=dequantized_cache,
        **settings(task, **changes),
    )


# -- measurements ------------------------------------------------------------------------------
def tuned(evaluator: QuantizedLoRAEvaluator, plan: Plan, seed: int) -> dict[str, Any]:
    """The final tuning of a plan on rows that the seed draws, measured on the test rows."""
    bench = evaluator.tuner
    start = time.perf_counter()
    evaluator.tuner.switcher.prepare()
    prepared = time.perf_counter()
    bench.apply(plan, seed)
    steps = bench.finetune.steps
    trained = bench.train(steps, seed, batches=bench.final_batches(steps, seed))
    held_out = bench.held_out("validation", bench.evaluation.validation_rows)
    return {
        **in_place(evaluator, plan),
        "train_loss": round(trained.loss, 5),
        "validation_loss": round(held_out, 5),
        "train_seconds": round(trained.seconds, 1),
        "quantize_seconds": round(prepared - start, 1),
        "seconds": round(time.perf_counter() - prepared, 1),
    }


def in_place(evaluator: QuantizedLoRAEvaluator, plan: Plan) -> dict[str, Any]:
    """The model in place on the test rows: loss a token, loss and tokens of every row; and the bytes of its plan."""
    bench = evaluator.tuner
    losses, tokens = row_losses(bench.model, bench.rows("test", bench.finetune.test_rows), 8, bench.device)
    return {
        "test_loss": round(sum(losses) / sum(tokens), 5),
        "row_losses": [round(x, 4) for x in losses],
        "row_tokens": tokens,
        "memory_bytes": evaluator.space.memory_bytes(plan),
        "compute": str(evaluator.quantized.compute).removeprefix("torch."),
        "cpu": cpu_name(),
    }


# -- resumable scripts -------------------------------------------------------------------------
def data_folder(text: str) -> str:
    """The folder named on the command line."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text} is not a folder: give the one with gsm8k_train.jsonl and the others")
    return text


def options(doc: str | None, seeds: int) -> ArgumentParser:
    """Options that all resumable scripts of the study have.

    Args:
        seeds: how many are tuned by default.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--minutes", type=float, help="begin no tuning after so many minutes; run again to go on")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the same number gives the same losses")
    parser.add_argument("--seeds", type=int, default=seeds, help="only the first so many")
    parser.add_argument("--only", default="", help="only what a name, `NAME` of `seed N  NAME`, matches (a regex)")
    parser.add_argument("--cache", help="folder of the cache of quantized weights")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    return parser


def begin(parser: ArgumentParser, given: Namespace) -> float | None:
    """When to begin nothing more, by `time.monotonic`; torch then has as many threads as were asked for.

    Raises:
        SystemExit: no data was given, which only `--table` does without.
    """
    if given.data is None:
        parser.error("--data is needed")
    torch.set_num_threads(given.threads)
    return None if given.minutes is None else time.monotonic() + 60 * given.minutes


def measure(
    path: Path,
    jobs: Iterable[tuple[str, Job]],
    until: float | None,
    *,
    only: str = "",
) -> None:
    """Measure what is not in a file of results yet, and append each line as it is made.

    Args:
        jobs: names to be shown and chosen by, with what measures them.
        until: begin nothing after this moment, by `time.monotonic`.
        only: a regular expression that a name has to match.

    Raises:
        SystemExit: with status `LEFT`, when the time is over and more is to be done.
    """
    for name, (key, make) in jobs:
        if not re.search(only, name) or like(key, read(path)):
            continue
        if until is not None and time.monotonic() > until:
            raise SystemExit(LEFT)
        line = {"commit": commit(), **make(), **key}
        append(path, line)
        print(f"seed {key['seed']}  {name}: {line['memory_bytes'] / MIB:.2f} MiB, {line['test_loss']:.4f}", flush=True)


def like(key: dict[str, Any], lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The first line that says the same; None if there is none."""
    return next((line for line in lines if key.items() <= line.items()), None)
