"""The real evaluator from a few flat settings, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export.tuned import TunedRun
from qra_eval.tuning.loading import load
from qra_search.schemas import Plan
from qra_search.sections import ModelConfig, SearchConfig, TaskConfig
from qra_search.space.space import SearchSpace

BRIEF: dict[str, dict[str, Any]] = {
    "training": {"max_length": 64},
    "evaluation": {"validation_rows": 8},
    "finetune": {"sample_answers": 0},
}
"""What a test gets that does not say otherwise: time grows with rows, their length and answers, and tells nothing."""


def make_evaluator(
    model: Any = "tiny",
    task: Any = "arithmetic",
    *,
    weights: bool = True,
    progress: Any = None,
    **settings: Any,
) -> QuantizedLoRAEvaluator:
    """The evaluator of a model and a task, brief where the settings leave it open.

    Args:
        task: a name, a file, the fields of `TaskConfig`, rows or a `Task`.
        settings: sections of the config, and fields of its sections `model` and `search`.
    """
    of_model = {name: settings.pop(name) for name in ModelConfig.model_fields if name in settings}
    of_search = {name: settings.pop(name) for name in SearchConfig.model_fields if name in settings}
    named = {"name": task} if isinstance(task, str) else task if isinstance(task, dict | TaskConfig) else None
    sections = {"model": {"name": str(model), **of_model}, "search": of_search, **BRIEF, **settings}
    for name, brief in BRIEF.items():
        if isinstance(sections[name], Mapping):
            sections[name] = {**brief, **sections[name]}
    config = sections if named is None else {**sections, "task": named}
    return QuantizedLoRAEvaluator(
        config, task=task if named is None else None, weights=weights, progress=progress
    )


def mixed_plan(space: SearchSpace) -> Plan:
    """The levels and the ranks of a space in turn."""
    count = range(len(space))
    bits, ranks = (tuple(values[i % len(values)] for i in count) for values in (space.bits, space.ranks))
    return Plan(bits, ranks)


def tune_tiny(
    model: Path, folder: Path, levels: Sequence[Any], ranks: Sequence[int], *, steps: int = 3, **settings: Any
) -> TunedRun:
    """A briefly tuned run whose groups have the levels and ranks in turn, in float32; the bank is beside its folder."""
    quantization = {"embeddings": 16, "cache": str(folder.parent / "bank"), **settings.pop("quantization")}
    few = {"training": {"learning_rate": 2e-2, "batch_size": 2}, "evaluation": {"validation_rows": 2}}
    evaluator = make_evaluator(
        str(model),
        **{**few, "finetune": {"test_rows": 2, "sample_answers": 0}, "dtype": "float32", **settings},
        quantization=quantization,
    )
    bits = []
    for i, group in enumerate(evaluator.space.groups):
        own = [level for level in levels if level in (group.bits or levels)]
        bits.append(own[i % len(own)])
    tables = [group.is_embedding for group in evaluator.space.groups]
    plan = Plan(tuple(bits), tuple(0 if table else ranks[i % len(ranks)] for i, table in enumerate(tables)))
    evaluator.tune(plan, steps=steps, folder=folder)
    evaluator.close()
    return TunedRun(folder)


@torch.no_grad()
def measure_reload(evaluator: QuantizedLoRAEvaluator, plan: Plan, folder: Path) -> float:
    """Largest difference of logits between the plan that was tuned last, in its stored form, and what `load` gives."""
    tuner, switcher = evaluator.tuner, evaluator.tuner.switcher
    row = tuner.rows("test", 1)[0].input_ids[:32].unsqueeze(0).to(tuner.device)
    tuner.quantized_model.keeps_dequantized = False
    for group, bits in zip(tuner.space.find_space(plan).groups, plan.bits, strict=True):
        for linear in group.linears:
            switcher.set_base_weight(linear.name, bits)
    switcher._cast_unquantized(tuner.quantized_model.dtype)
    mine = tuner.model.eval()(input_ids=row, use_cache=False).logits
    loaded, _ = load(folder, device=str(tuner.device))
    loaded.get_base_model().set_attn_implementation(tuner.model.config._attn_implementation)
    return float((mine - loaded(input_ids=row, use_cache=False).logits).abs().max())
