"""The evaluators and the plans of the rows of `answers.py`."""

from __future__ import annotations

import zlib
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.study import protocol
from benchmarks.study.answers_settings import NF4, RANK, SETTINGS
from benchmarks.study.answers_table import SEARCH, UNIFORM
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.sensitivity_table import sensitivity_table
from qra_search.workflow.search import search

TRIALS = "trials.jsonl"
"""A search's log, in its row's folder; a search that was broken off goes on there."""


def evaluator(
    options: Namespace,
    bits: tuple[int, ...],
    ranks: tuple[int, ...],
    *,
    backend: Any = NF4,
    tables: int | tuple[int, ...] = UNQUANTIZED_BITS,
) -> QuantizedLoRAEvaluator:
    """The model under its settings.

    Args:
        backend: by default that of rivals, which leave embeddings in 16 bits.
        tables: widths of embeddings and head.
    """
    setting = SETTINGS[options.name]
    return protocol.evaluator(
        setting.task, options.data, backend=backend, bits=bits, ranks=ranks, embeddings=tables,
        model=options.model_file, cache=options.cache, options=setting.options, finetune=setting.finetune,
        training=setting.training, evaluation=setting.evaluation, dequantized_cache=options.dequantized_cache,
        compute=setting.compute,
    )  # fmt: skip


def bytes_of_qlora(options: Namespace) -> int:
    """What QLoRA's weights and adapters take, counted as those of plans are."""
    nf4 = evaluator(options, (4,), (RANK,))
    uniform = nf4.space.uniform(4, RANK)
    assert uniform is not None  # both are all that the space has
    return nf4.space.memory_bytes(uniform)


def plan_of(made: QuantizedLoRAEvaluator, row: str, options: Namespace, folder: Path | None) -> Plan:
    """The plan of a row's name: uniform, or the sensitivities' or a search's within a share of QLoRA's bytes."""
    limit = bytes_of_qlora(options) * number_in(row) // 100
    if row.startswith(UNIFORM):
        plan = made.space.uniform(number_in(row), RANK)
    elif row.startswith(SEARCH):
        assert folder is not None  # only models that write answers are searched
        evaluations = SETTINGS[options.name].evaluations
        found = search(made, evaluations=evaluations, memory_budget=limit, log=folder / TRIALS)
        plan = found.chosen(limit)
    else:
        plan = additive_plan(made.space, sensitivity_table(made.space, made.sensitivities()), limit)
    assert plan is not None  # the widths are in the space, and no share is below its least plan
    return plan


def number_in(row: str) -> int:
    """The bits or the share that a row's name says."""
    return int("".join(filter(str.isdecimal, row)))


def words(made: QuantizedLoRAEvaluator, plan: Plan) -> dict[str, Any]:
    """How many linears a plan has at each width and rank, and the widths of its tables."""
    own = [i for i, group in enumerate(made.space.groups) if not group.is_embedding]
    return {
        "bits": {str(b): n for b, n in sorted(Counter(plan.bits[i] for i in own).items())},
        "ranks": {str(r): n for r, n in sorted(Counter(plan.ranks[i] for i in own).items())},
        "embeddings": [plan.bits[i] for i, group in enumerate(made.space.groups) if group.is_embedding],
        "choices": zlib.crc32(plan.key.encode()),
    }
