"""One row of `finetunes.py`: a plan or a rival tuned, its losses, and its answers to all test questions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.finetune_settings import Row
from benchmarks.study.generated import computing_in, dequantized
from benchmarks.study.qlora import qlora
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.losses import row_losses
from qra_eval.tasks.metrics import exact_match, json_f1, parse_json
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig
from qra_search.space.budgets import resolve
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.sensitivity_table import sensitivity_table

NF4 = {"name": "bitsandbytes-nf4", "double_quant": True}
TOGETHER = 64
"""Answers that are generated together."""
MARGIN = 8
"""Tokens that an answer may be longer than the longest wanted one."""
TRAINING = ("batch_size", "learning_rate", "schedule", "warmup", "alpha", "scales", "max_length")


def measure_row(
    task: str, data: str, model: str, row: Row, seed: int, settings: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """A row's figures.

    Args:
        folder: of checkpoints; a tuning that is there is resumed.
    """
    plans = settings["plans"]
    if row.is_plan:
        bits = plans["bits"] if row.budget is not None else [row.bits]
        ranks = [row.rank] if row.rank is not None else plans["ranks"]
        quantization = QuantizationConfig(backend=plans["backend"], embeddings=plans["embeddings"])
    else:
        bits, ranks = [4, UNQUANTIZED_BITS], [0, row.rank or 0]
        quantization = QuantizationConfig(backend=NF4, embeddings=UNQUANTIZED_BITS)
    evaluator = QuantizedLoRAEvaluator(
        model,
        TaskConfig(name=task, data=data),
        quantization=quantization,
        space=SpaceConfig(bits=tuple(bits), ranks=tuple(sorted(set(ranks)))),
        training={name: settings[name] for name in TRAINING},
        finetune={
            "steps": settings["steps"], "test_rows": settings["loss_rows"], "sample_answers": 0,
            "checkpoint_minutes": 3.0,
        },
        compute=settings["compute"],
    )  # fmt: skip
    tuner = evaluator.tuner
    line: dict[str, Any] = {"rows": tuner.rows.hash(train=settings["steps"] * settings["batch_size"], test=None)}
    tuned_model = tuner.model
    if row.kind == "qlora":
        assert row.rank is not None
        tuned_model, report = qlora(evaluator, seed, row.rank, None, checkpoints=folder)
        losses, tokens = row_losses(
            tuned_model, tuner.rows("test", settings["loss_rows"]), 2 * settings["batch_size"], tuner.device
        )
        tuned_model = computing_in(settings["compute"], dequantized(tuned_model))
        line |= {"memory_bytes": uniform_bytes(evaluator.space, 4, row.rank), "train_loss": report["train_loss"]}
    elif row.kind == "untuned":
        losses, tokens = row_losses(
            tuned_model, tuner.rows("test", settings["loss_rows"]), 2 * settings["batch_size"], tuner.device
        )
        line["memory_bytes"] = uniform_bytes(evaluator.space, UNQUANTIZED_BITS, 0)
    else:
        plan = choose_plan(evaluator, row)
        tuned = evaluator.tune(plan, seed=seed, kept=folder)
        losses, tokens = list(tuned.row_nats), list(tuned.row_tokens)
        line |= {"memory_bytes": tuned.memory_bytes, **describe_plan(evaluator.space, plan)}
    return {
        **line,
        "test_loss": round(sum(losses) / sum(tokens), 5),
        "row_losses": " ".join(f"{loss:.4g}" for loss in losses),
        "row_tokens": " ".join(map(str, tokens)),
        **score_answers(evaluator, tuned_model, settings["max_length"]),
    }


def score_answers(evaluator: QuantizedLoRAEvaluator, model: Any, max_length: int) -> dict[str, Any]:
    """Scores of a greedy answer to each test question: whether it is right, as 0 and 1, and F1 of JSON answers."""
    task, tokenizer = evaluator.task, evaluator.tuner.tokenizer
    examples = task.split("test")
    new_tokens = max(len(tokenizer(example.answer)["input_ids"]) for example in examples) + MARGIN
    answers = task.answers(
        model, tokenizer, examples, new_tokens, batch_size=TOGETHER, max_length=max_length + new_tokens, stop=("\n",)
    )
    pairs = [(answer, example.answer) for answer, example in zip(answers, examples, strict=True)]
    right = [int(exact_match(*pair)) for pair in pairs]
    scores = {"right": round(sum(right) / len(right), 5), "row_right": "".join(map(str, right))}
    if isinstance(parse_json(examples[0].answer), dict):
        f1 = [json_f1(*pair) for pair in pairs]
        scores |= {"f1": round(sum(f1) / len(f1), 5), "row_f1": " ".join(f"{score:.3g}" for score in f1)}
    return scores


# -- plans -------------------------------------------------------------------------------------
def choose_plan(evaluator: QuantizedLoRAEvaluator, row: Row) -> Plan:
    """The plan of a row."""
    space = evaluator.space
    if row.kind == "lora":
        assert row.rank is not None
        plan = space.uniform(UNQUANTIZED_BITS, row.rank)
    elif row.kind == "uniform":
        assert row.bits is not None and row.rank is not None
        plan = space.uniform(row.bits, row.rank)
    else:
        (budget,) = resolve(space, row.budget)
        if row.kind == "first-wider":
            plan = widen_first(space, budget)
        else:
            plan = additive_plan(space, sensitivity_table(space, evaluator.sensitivities()), budget)
            if row.kind == "shuffled" and plan is not None:
                plan = shuffle_plan(space, plan, row.shuffle or 0)
    if plan is None:
        raise SystemExit(f"no plan for {row.name}")
    return plan


def shuffle_plan(space: SearchSpace, plan: Plan, seed: int) -> Plan:
    """The plan's choices, shuffled over groups with linears of the same shapes: the same bytes."""
    alike: dict[Any, list[int]] = {}
    for i, group in enumerate(space.groups):
        shapes = tuple((linear.out_features, linear.in_features) for linear in group.linears)
        alike.setdefault((group.is_embedding, shapes), []).append(i)
    generator = np.random.default_rng(seed)
    bits, ranks = list(plan.bits), list(plan.ranks)
    for places in alike.values():
        for i, source in zip(places, generator.permutation(places), strict=True):
            bits[i], ranks[i] = plan.bits[source], plan.ranks[source]
    return Plan(tuple(bits), tuple(ranks))


def widen_first(space: SearchSpace, budget: int) -> Plan | None:
    """One width for all within a budget, and the next wider one in the first groups, as far as the budget goes."""
    (rank,) = space.ranks
    uniform = [plan for bits in space.bits if (plan := space.uniform(bits, rank)) is not None]
    best = None
    for narrow, wide in zip(uniform, uniform[1:], strict=False):
        for count in range(len(space) + 1):
            plan = Plan(wide.bits[:count] + narrow.bits[count:], narrow.ranks)
            if space.memory_bytes(plan) <= budget:
                best = plan
    return best


def uniform_bytes(space: SearchSpace, bits: int, rank: int) -> int:
    """Bytes of one width and rank for all."""
    plan = space.uniform(bits, rank)
    assert plan is not None  # both are in the space
    return space.memory_bytes(plan)


def describe_plan(space: SearchSpace, plan: Plan) -> dict[str, Any]:
    """How many linears a plan has at each width and rank, and its choices."""
    own = [i for i, group in enumerate(space.groups) if not group.is_embedding]
    return {
        "bits": {str(b): n for b, n in sorted(Counter(str(plan.bits[i]) for i in own).items())},
        "ranks": {str(r): n for r, n in sorted(Counter(plan.ranks[i] for i in own).items())},
        "plan": plan.key,
    }
