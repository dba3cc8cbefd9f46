"""Every supported architecture is searched from a saved folder to a tuned adapter that loads back."""

from __future__ import annotations

import pytest
from evaluators import make_evaluator, measure_reload
from tiny_families import save_tiny

from qra_search import Plan, search
from qra_search.sections import QuantizationConfig, SpaceConfig

FAMILIES = ["llama", "qwen3", "mistral", "gemma3", "phi", "gpt2", "opt", "gpt_neox", "mixtral", "qwen3_moe"]


@pytest.fixture
def built(request, tmp_path):
    """An evaluator of a tiny random model of a family, saved and loaded as a user's folder would be."""
    evaluator = build(request.param, tmp_path, granularity="fused")
    yield evaluator
    evaluator.close()


def build(family, tmp_path, **space):
    layers = 1 if family in ("mixtral", "qwen3_moe") else 2  # a layer of theirs has sixteen linears
    return make_evaluator(
        save_tiny(family, tmp_path / "model", layers=layers),
        "arithmetic",
        quantization=QuantizationConfig(backend="reference", embeddings=16, cache=str(tmp_path / "bank")),
        space=SpaceConfig(bits=(2, 4), ranks=(0, 4), **space),
        training={"batch_size": 2},
        evaluation={"steps": 1, "validation_rows": 2},
        finetune={"test_rows": 2, "steps": 2},
    )


@pytest.mark.parametrize("built", FAMILIES, indirect=True)
def test_a_family_is_searched_and_its_best_plan_tuned_and_loaded_back(built, tmp_path):
    budget = built.space.memory_bytes(built.space.uniform(4, 4)) - 1
    result = search(built, evaluations=6, memory_budget=budget, seed=0)
    assert not result.failures() and len(result.candidates) > len(result.uniform) > 0
    best = result.best()
    assert best is not None and best.memory_bytes <= budget and 4 in best.plan.ranks
    tuned = built.tune(best.plan, folder=tmp_path / "run")
    assert tuned.memory_bytes == best.memory_bytes


def test_experts_that_differ_in_bits_and_rank_are_tuned_together_and_loaded_back(tmp_path):
    evaluator = build("qwen3_moe", tmp_path)
    kinds = [group.kind for group in evaluator.space.groups]
    assert kinds.count("expert") == 4 and {len(g.linears) for g in evaluator.space.groups} == {1, 3}
    several = range(len(evaluator.space))
    plan = Plan(tuple((2, 4)[i % 2] for i in several), tuple((0, 4)[i // 2 % 2] for i in several))
    evaluator.tune(plan, folder=tmp_path / "run")
    assert measure_reload(evaluator, plan, tmp_path / "run") == 0
    trained = {
        name
        for name, w in evaluator.tuner.switcher.wrapped.items()
        if w.lora_A is not None and w.lora_B.any()
    }
    assert trained == {
        linear.name
        for g, rank in zip(evaluator.space.groups, plan.ranks, strict=True)
        if rank
        for linear in g.linears
    }
    evaluator.close()
