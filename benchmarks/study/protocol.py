"""What the study holds fixed: model, data, what an evaluation is, the budgets, and the rows of the comparison."""

from __future__ import annotations

import subprocess
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import RESULTS

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import (
    EvaluationConfig,
    FinetuneConfig,
    QuantizationConfig,
    SpaceConfig,
    TaskConfig,
    TrainingConfig,
)
from qra_search.space.space import Plan, SearchSpace

MODEL = "smollm2"
BACKEND = "mixed-calibrated"
TRAINING = TrainingConfig(batch_size=4, max_length=160, learning_rate=2e-3)
EVALUATION = EvaluationConfig(steps=12, validation_rows=64)
FINETUNE = FinetuneConfig(steps=36, test_rows=96)
"""One evaluation: 12 steps of 4 rows, then the loss on 64 held-out rows. The final tuning: 36 steps, 96 test rows.
The learning rate is the best of 5e-4, 1e-3, 2e-3 for uniform 4-bit plans on validation rows (`pace.py`)."""
SHORT = EVALUATION.model_copy(update={"steps": 3, "validation_rows": 16})
"""A cheap evaluation, at less than a third of the tokens: does a search on these find as good plans?"""
OTHER_TASK_ROWS = {"evaluation": {"validation_rows": 256}, "finetune": {"test_rows": 480}}
"""Of the other tasks: an answer has 5 tokens where GSM8K's has 110, so more rows are needed to tell plans apart."""
TASKS = ("gsm8k", "arc_easy", "openbookqa", "arc_challenge")
BITS = (2, 3, 4, 8)
WIDE = EVALUATION.model_copy(update={"steps": 8, "validation_rows": 96})
"""Fewer steps, more held-out rows: does a search then fit its validation rows less?"""
RANKS = (2, 4, 8, 16)
EVALUATIONS = 45
"""Full evaluations of a search, the prior among them: half an epoch."""
SEEDS = (0, 1, 2)
LONGER = 108
"""Steps of a tuning three times as long as the final one: does what was found for short ones hold?"""
LEFT = 3
"""Status of a piece that ended in time, with more to do."""
EPOCH_FORWARDS = 3.0
"""Forward passes that training on a token costs, the backward pass counted as two."""


@dataclass(frozen=True)
class Uniform:
    """A uniform plan that a user would pick: one backend, bit-width and rank for every linear."""

    backend: str
    bits: int
    rank: int
    init: str = "default"
    """Where the adapters start; "adalora": AdaLoRA, which ends at this rank on average."""
    embeddings: int = 16
    rate: float | None = None
    """A learning rate of its own."""

    @property
    def name(self) -> str:
        label = {"mixed-calibrated": "gptq", "bitsandbytes-nf4": "nf4"}.get(self.backend, self.backend)
        name = f"16-bit r{self.rank}" if self.bits == 16 else f"{label} {self.bits}-bit r{self.rank}"
        name += f" {self.init}" if self.init != "default" else ""
        name += f" at {self.rate:g}" if self.rate is not None else ""
        return name + f", embeddings {self.embeddings}-bit" if self.embeddings != 16 else name


UNIFORM = (
    Uniform(BACKEND, 4, 8),
    Uniform(BACKEND, 3, 8),
    Uniform(BACKEND, 3, 2),
    Uniform(BACKEND, 16, 8),
    Uniform(BACKEND, 3, 32),
    Uniform(BACKEND, 16, 32),
    Uniform("bitsandbytes-nf4", 4, 8),
    Uniform("bitsandbytes-nf4", 4, 2),
    Uniform("hqq", 3, 8),
    Uniform("hqq", 3, 32),
)
"""The rivals that are tuned with every seed first."""

MORE = (
    Uniform(BACKEND, 4, 2),
    Uniform(BACKEND, 4, 8, rate=4e-3),
    Uniform(BACKEND, 4, 8, "loftq"),
    Uniform(BACKEND, 4, 8, "pissa", rate=5e-4),
    Uniform(BACKEND, 4, 8, "eva", rate=5e-4),
    Uniform(BACKEND, 4, 8, "adalora", rate=2e-2),
    Uniform(BACKEND, 2, 8),
    Uniform(BACKEND, 2, 32),
    Uniform(BACKEND, 4, 8, embeddings=8),
    Uniform(BACKEND, 3, 8, embeddings=8),
    Uniform("bitsandbytes-nf4", 4, 32),
    Uniform("bitsandbytes-nf4", 4, 16),
    Uniform("bitsandbytes-nf4", 4, 4),
    Uniform("hqq", 3, 2),
    Uniform("hqq", 4, 2),
    Uniform("hqq", 4, 8),
    Uniform("hqq", 3, 4),
    Uniform("hqq", 4, 4),
    Uniform("hqq", 3, 16),
    Uniform("hqq", 4, 16),
    Uniform("hqq", 4, 32),
    Uniform("hqq", 2, 8),
    Uniform("hqq", 8, 8),
)
"""Tuned with every seed after those; other beginnings at the best rate of each on validation rows (`pace.py`)."""


def data_folder(text: str) -> str:
    """The folder named on the command line."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text} is not a folder: give the one with gsm8k_train.jsonl and the others")
    return text


def options(doc: str | None, seeds: int) -> ArgumentParser:
    """What the resumable scripts of the study are told on the command line.

    Args:
        seeds: how many are tuned unless something else is said.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--minutes", type=float, help="begin no tuning after so many minutes; run again to go on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=seeds, help="only the first so many")
    parser.add_argument("--cache", help="folder of the bank")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    return parser


def begin(parser: ArgumentParser, given: Namespace) -> tuple[float | None, str]:
    """When to begin nothing more, by `time.monotonic`, and the commit; torch has as many threads as were asked for.

    Raises:
        SystemExit: no data was given, which only `--table` does without.
    """
    if given.data is None:
        parser.error("--data is needed")
    torch.set_num_threads(given.threads)
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return until, found.stdout.strip()


def settings(task: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """The sections `training`, `evaluation` and `finetune` of a task, with changes by section."""
    sections = {"training": TRAINING, "evaluation": EVALUATION, "finetune": FINETUNE}
    for update in ({} if task == "gsm8k" else OTHER_TASK_ROWS, changes):
        sections |= {name: sections[name].model_copy(update=fields) for name, fields in update.items()}
    return sections


def evaluator(
    task: str,
    data: str | Path,
    *,
    backend: str = BACKEND,
    bits: tuple[int, ...] = BITS,
    ranks: tuple[int, ...] = RANKS,
    granularity: str = "module",
    embeddings: int = 16,
    evaluation: EvaluationConfig | None = None,
    model: str = MODEL,
    cache: str | None = None,
) -> QuantizedLoRAEvaluator:
    """The real evaluator under the study's settings."""
    return QuantizedLoRAEvaluator(
        model,
        TaskConfig(name=task, data=str(data)),
        quantization=QuantizationConfig(backend=backend, embeddings=embeddings, cache=cache),
        space=SpaceConfig(bits=bits, ranks=ranks, granularity=granularity),  # type: ignore[arg-type]
        **settings(task) | ({} if evaluation is None else {"evaluation": evaluation}),
    )


def budgets(task: str, data: str | Path, *, low: bool = False) -> dict[str, int]:
    """Bytes of uniform 3-bit and 4-bit at rank 8 in the calibrated backend, embeddings in 16 bits, and midway.

    Where `low`: of uniform 2-bit, and midway to 3-bit.
    """
    space = evaluator(task, data).space
    two, three, four = (space.memory_bytes(space.uniform(bits, 8)) for bits in (2, 3, 4))
    if low:
        return {"2-bit": two, "2.5-bit": (two + three) // 2}
    return {"3-bit": three, "midway": (three + four) // 2, "4-bit": four}


def by_linear(space: SearchSpace, plan: Plan) -> Plan:
    """The same choices, one for each linear; a group's linears follow each other in the model."""
    sizes = [len(group.linears) for group in space.groups]
    return Plan(*(tuple(np.repeat(levels, sizes).tolist()) for levels in (plan.bits, plan.ranks)))


def compact(plan: Plan) -> dict[str, str]:
    """A plan in two short texts: bits and ranks, separated by commas."""
    return {"bits": ",".join(map(str, plan.bits)), "ranks": ",".join(map(str, plan.ranks))}


def expanded(row: dict[str, str]) -> Plan:
    """The plan that `compact` wrote."""
    return Plan(
        tuple(int(b) for b in row["bits"].split(",")),
        tuple(int(r) for r in row["ranks"].split(",")),
    )
