"""The peak of training: additive in the plan, with what scales take, and what a search can be held to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qra_eval.costs.peak_memory import peak_space
from qra_eval.costs.sizes import MOMENTS, TRAINED_NUMBER
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search import search

Build = Callable[..., QuantizedLoRAEvaluator]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    cache = str(tmp_path_factory.mktemp("bank"))

    def make(memory_kind: str = "resident", ranks: tuple[int, ...] = (0, 4, 8), **training: object) -> object:
        return QuantizedLoRAEvaluator(
            "tiny", "arithmetic", quantization={"backend": "reference", "embeddings": 16, "cache": cache},
            space={"bits": (2, 4), "ranks": ranks}, training={"batch_size": 4, "max_length": 64, **training},
            evaluation={"steps": 3, "validation_rows": 4}, dtype="float32", memory_kind=memory_kind,
            dequantized_cache=0,
        )  # fmt: skip

    return make  # type: ignore[return-value]


def test_peak_bytes_add_up_over_groups_and_count_moments_for_an_adapter_weight(build: Build) -> None:
    evaluator = build()
    space, peak = evaluator.space, peak_space(evaluator.tuner)
    low, high = space.uniform(2, 4), space.uniform(4, 8)
    widths = sum(m.in_features + m.out_features for g in space.groups for m in g.linears)
    resident = space.memory_bytes(high) - space.memory_bytes(low) - 4 * widths * 2
    assert peak.memory_bytes(high) - peak.memory_bytes(low) == resident + 4 * widths * (4 + MOMENTS)
    added = peak_space(build(accumulation=2).tuner)  # gradients of earlier batches wait
    assert added.memory_bytes(high) - added.memory_bytes(low) == resident + 4 * widths * (4 + MOMENTS + 4)
    assert peak_space(build(gradient_checkpointing=True).tuner).fixed_bytes < peak.fixed_bytes
    bare = build(ranks=(0,))
    assert peak_space(bare.tuner).fixed_bytes == bare.space.fixed_bytes  # nothing is trained


def test_the_peak_is_that_of_the_longest_rows_of_a_full_tuning_too(build: Build) -> None:
    short = build().tuner
    few = peak_space(short).fixed_bytes
    short.finetune = short.finetune.model_copy(update={"steps": 3})
    assert peak_space(short).fixed_bytes < few  # 12 rows in place of 400: the longest of them is shorter


def test_scales_that_are_trained_along_count_at_every_lossy_level(build: Build) -> None:
    usual, along = (build(scales=on).tuner for on in (False, True))
    peaks = [peak_space(tuner) for tuner in (usual, along)]
    linears = [m for g in usual.space.groups for m in g.linears]
    numbers = sum(2 * m.out_features * -(-m.in_features // 64) for m in linears)
    weight = max(m.out_features * m.in_features for m in linears) * 4
    for bits in (2, 4):
        without, with_them = (peak.memory_bytes(peak.uniform(bits, 8)) for peak in peaks)
        assert with_them == without + TRAINED_NUMBER * numbers + weight


def test_a_search_can_be_held_to_the_peak(build: Build) -> None:
    evaluator = build("peak", ranks=(4, 8))
    budget = evaluator.space.memory_bytes(evaluator.space.uniform(2, 8))
    result = search(evaluator, strategy="additive", evaluations=8, memory_budget=budget)
    best = result.best()
    assert not evaluator.quantized.materialised and not result.failures() and best is not None
    assert best.memory_bytes == evaluator.space.memory_bytes(best.plan) <= budget
    assert evaluator.quantized.space.memory_bytes(best.plan) < best.memory_bytes
