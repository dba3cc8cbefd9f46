"""One row of `finetunes.py`: a plan or a rival, tuned, with losses and answers on test questions."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.finetune_plans import choose_plan, uniform_plan
from benchmarks.study.finetune_settings import Row
from benchmarks.study.qlora import dequantize_model, tune_qlora
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.tasks.batches import measure_row_losses
from qra_eval.tasks.encoding import IGNORED, Encoded
from qra_eval.tasks.sources import read_folder_rows
from qra_search.log.journal import TrialLog
from qra_search.schemas import Plan
from qra_search.sections import QuantizationConfig
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import SearchSpace

NF4 = {"name": "bitsandbytes-nf4", "double_quant": True}
ANSWERS_TOGETHER = 64
"""Prompts in a batch of generation."""
TEXT_ROWS = 128
"""Questions of GSM8K whose loss is measured."""
TRAINING = (
    "batch_size",
    "learning_rate",
    "warmup",
    "alpha",
    "scales",
    "scales_rate",
    "max_length",
)


def measure_row(
    options: Namespace, row: Row, seed: int, settings: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Figures of a row.

    Args:
        folder: of checkpoints; the row's tuning resumes from the last one there.
    """
    if row.kind == "merged":
        options, row = merge_lora(options, row, seed, settings, folder)
    evaluator = make_evaluator(options, row, settings)
    space, tuner, model = evaluator.space, evaluator.tuner, evaluator.tuner.model
    trained_rows = settings["steps"] * settings["batch_size"]
    line: dict[str, Any] = {"rows": tuner.rows.hash(train=trained_rows, test=None)}
    if row.kind == "quantized":
        plan = uniform_plan(space, row.bits, 0)
        tuner.switcher.put_plan(plan, seed)
        test_rows = tuner.rows("test", settings["loss_rows"])
        losses, tokens = measure_row_losses(model, test_rows, 2 * settings["batch_size"], tuner.device)
        line |= describe_plan(space, plan)
    elif row.kind in ("untuned", "qlora"):
        plan = uniform_plan(space, UNQUANTIZED_BITS if row.kind == "untuned" else 4, row.rank or 0)
        if row.kind == "qlora":
            model = tune_qlora(evaluator, seed, row.rank or 0, folder)
        test_rows = tuner.rows("test", settings["loss_rows"])
        losses, tokens = measure_row_losses(model, test_rows, 2 * settings["batch_size"], tuner.device)
    else:
        searched = {"evaluations": settings["search"]["evaluations"]} if row.kind == "search" else {}
        log = folder / "trials.jsonl"
        plan = choose_plan(evaluator, row, log, **searched)
        if searched:
            line["trials"] = [
                [t.plan.key, t.fidelity, round(t.loss, 5)] for t in TrialLog(log).trials if t.done
            ]
        tuned = evaluator.tune(plan, seed=seed, folder=folder)
        losses, tokens = list(tuned.row_nats), list(tuned.row_tokens)
        line |= describe_plan(space, plan)
    questions = [line["question"] for _, line in read_folder_rows(options.data, "gsm8k", "test")[:TEXT_ROWS]]
    general = measure_text_loss(evaluator, model, questions, settings["max_length"], settings["batch_size"])
    if row.kind == "qlora":
        model = dequantize_model(model, evaluator.quantized_model.compute)
    return {
        **line,
        "memory_bytes": space.memory_bytes(plan),
        "test_loss": round(sum(losses) / sum(tokens), 5),
        "row_losses": write_numbers(losses, 4),
        "row_tokens": write_numbers(tokens, 4),
        "text_loss": round(general, 5),
        **score_answers(evaluator, model, settings),
    }


def merge_lora(
    options: Namespace, row: Row, seed: int, settings: dict[str, Any], folder: Path
) -> tuple[Namespace, Row]:
    """The options and the row that quantize a model of its own: 16-bit LoRA, tuned and merged into its weights."""
    merged = folder / "merged"
    if not merged.is_dir():
        lora = make_evaluator(options, Row("lora", rank=row.rank), settings)
        plan = uniform_plan(lora.space, UNQUANTIZED_BITS, row.rank or 0)
        lora.tune(plan, seed=seed, folder=folder / "lora")
        lora.close()
        export(folder / "lora", "merged", merged)
    return Namespace(**{**vars(options), "model": str(merged)}), Row("quantized", bits=row.bits, rank=0)


def make_evaluator(options: Namespace, row: Row, settings: dict[str, Any]) -> QuantizedLoRAEvaluator:
    """The evaluator whose space has the row's plan."""
    plans = settings["plans"]
    if row.is_ours:
        bits = plans["bits"] if row.budget or row.kind == "peer" else [row.bits]
        ranks = plans["ranks"] if row.rank is None else [row.rank]
        quantization = QuantizationConfig(
            **{name: plans[name] for name in ("backend", "embeddings", "calibration") if name in plans}
        )
    else:
        bits, ranks = [4, UNQUANTIZED_BITS], [0, row.rank or 0]
        quantization = QuantizationConfig(backend=NF4, embeddings=UNQUANTIZED_BITS)
    return QuantizedLoRAEvaluator(
        {
            "model": {"name": options.model, "compute": settings["compute"]},
            "task": {"name": options.task, "data": options.data},
            "quantization": quantization,
            "space": {"bits": bits, "ranks": sorted(set(ranks))},
            "training": {name: settings[name] for name in TRAINING if name in settings},
            "search": {"memory": [] if row.budget is None else [row.budget]},
            "evaluation": {
                name: value for name, value in settings.get("search", {}).items() if name != "evaluations"
            },
            "finetune": {
                "steps": settings["steps"],
                "test_rows": settings["loss_rows"],
                "scored_rows": 0,
                "sample_answers": 0,
                "checkpoint_minutes": 3.0,
            },
        }
    )


def measure_text_loss(
    evaluator: QuantizedLoRAEvaluator, model: Any, texts: Sequence[str], max_length: int, batch_size: int
) -> float:
    """Nats a token on plain texts that nothing is fitted to: what a model forgets."""
    tokenizer = evaluator.tuner.tokenizer
    rows = []
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"][:max_length])
        labels = ids.clone()
        labels[0] = IGNORED
        rows.append(Encoded(ids, labels))
    losses, tokens = measure_row_losses(model, rows, batch_size, evaluator.tuner.device)
    return sum(losses) / sum(tokens)


def score_answers(evaluator: QuantizedLoRAEvaluator, model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Whether the greedy answer to each test question is right, as a text of 0 and 1; F1 of answers that are JSON.

    The setting `answer_rows` asks for the first so many questions only.
    """
    task, tokenizer = evaluator.task, evaluator.tuner.tokenizer
    examples = task.split("test")[: settings.get("answer_rows")]
    room = settings["max_length"] + task.max_answer_tokens(examples, tokenizer)
    found = task.score_rows(model, tokenizer, examples, batch_size=ANSWERS_TOGETHER, max_length=room)
    right, f1 = list(map(int, found["exact_match"])), found.get("f1")
    scores = {"right": round(sum(right) / max(1, len(right)), 5), "row_right": "".join(map(str, right))}
    if f1:
        scores |= {"f1": round(sum(f1) / len(f1), 5), "row_f1": write_numbers(f1, 3)}
    return scores


def describe_plan(space: SearchSpace, plan: Plan) -> dict[str, Any]:
    """A plan's choices, and how many linears have each width and rank."""
    linears = [i for i, group in enumerate(space.groups) if not group.is_embedding]
    return {
        "bits": dict(sorted(Counter(str(plan.bits[i]) for i in linears).items())),
        "ranks": {str(rank): n for rank, n in sorted(Counter(plan.ranks[i] for i in linears).items())},
        "plan": plan.key,
    }


def write_numbers(numbers: Sequence[float], digits: int) -> str:
    """Numbers in a text, with so many significant digits."""
    return " ".join(f"{number:.{digits}g}" for number in numbers)
