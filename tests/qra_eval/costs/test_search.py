"""What a search will take, told before anything is quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import Qra
from evaluators import make_evaluator
from tiny_families import tiny_config, tiny_config_model

from qra_eval.costs import search as module
from qra_eval.costs.search import check_engine
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.batches import make_batches
from qra_search import Plan
from qra_search.sections import QuantizationConfig, SpaceConfig


def make(folder: Path, backend: str = "reference", **options: Any) -> QuantizedLoRAEvaluator:
    usual = {"evaluation": {"steps": 3, "validation_rows": 8}, "finetune": {"steps": 3, "test_rows": 8}}
    return make_evaluator(
        "tiny",
        "arithmetic",
        quantization=QuantizationConfig(backend=backend, embeddings=16, cache=str(folder)),
        space=SpaceConfig(bits=(2, 4), ranks=(4, 8)),
        training={"batch_size": 4, "scales": False},
        **(usual | options),
    )


@pytest.mark.parametrize("backend", ["reference", "reference-gptq"])
def test_an_estimate_quantizes_nothing_for_good_and_leaves_the_model_as_it_was(
    tmp_path: Path, backend: str
) -> None:
    evaluator = make(tmp_path / "bank", backend)
    before = {name: p.detach().clone() for name, p in evaluator.tuner.model.named_parameters()}
    facts = evaluator.estimate_search_cost()
    seconds = {"setup_seconds", "sensitivities_seconds", "evaluation_seconds", "tuning_seconds"}
    assert set(facts) == {*seconds, "phases", "engines"}
    assert all(facts[name] > 0 for name in seconds)
    assert not (tmp_path / "bank").exists()
    after = dict(evaluator.tuner.model.named_parameters())
    assert set(after) == set(before)
    assert all(p.dtype == before[n].dtype and torch.equal(p, before[n]) for n, p in after.items())


def test_nothing_is_left_to_quantize_once_the_cache_has_it(tmp_path: Path) -> None:
    first = make(tmp_path / "bank")
    assert not first.quantized_model.is_quantized()
    n = len(first.space)
    first.evaluate(Plan((2,) * n, (4,) * n))
    again = make(tmp_path / "bank")
    assert again.quantized_model.is_quantized() and again.estimate_search_cost()["setup_seconds"] == 0.0
    other = make(tmp_path / "bank", "reference-gptq")
    assert not other.quantized_model.is_quantized()


@pytest.mark.parametrize("weights", [True, False])
def test_the_pace_is_that_of_a_layer_times_their_number_and_of_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    if weights:
        evaluator = make(tmp_path)
    else:
        tiny_config_model("llama", layers=4, vocabulary=320).config.save_pretrained(tmp_path)
        evaluator = make_evaluator(
            str(tmp_path), "arithmetic", training={"max_length": 64, "batch_size": 2}, weights=False
        )
    seconds = iter([5.0, 0.25])  # of the layer, of the head
    monkeypatch.setattr(module, "_measure_min_seconds", lambda work, device: (work(), next(seconds))[1])
    size = 2 * evaluator.quantized_model.settings.batch_size
    tokens = make_batches(evaluator.rows("validation", size), size)[0].tokens
    assert module.measure_seconds_per_token(evaluator.tuner) == pytest.approx((4 * 5.0 + 0.25) / tokens)


def test_a_dry_run_prints_time_and_memory_and_quantizes_nothing(tmp_path, qra: Qra, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = [
        "--model",
        "tiny",
        "--task",
        "arithmetic",
        "--set",
        "evaluation.steps=2",
        "--set",
        "finetune.steps=2",
    ]
    command = ("search", *model, "--set", f"quantization.cache={tmp_path / 'bank'}", "--dry-run", "-n", 10)
    text = qra(*command)
    assert text.status == 0, text.err
    for words in ("smallest plan", "about", "an evaluation", "for the sensitivities", "peak of tune"):
        assert words in text.out
    judged = qra(*command, "--set", "search.metric=task")
    assert "an evaluation, not counting the answers that it writes" in " ".join(judged.out.split())
    facts = qra(*command, "--json").json["estimate"]
    overhead = facts["setup_seconds"] + facts["sensitivities_seconds"]
    assert facts["total_seconds"] == pytest.approx(overhead + facts["evaluation_seconds"] * 10)
    assert list(tmp_path.iterdir()) == []


EXPERTS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.1.up_proj")


@pytest.mark.parametrize("granularity", ["module", "expert"])
def test_llama_cpp_has_the_experts_of_a_layer_in_one_tensor(granularity: str) -> None:
    config = tiny_config("qwen3_moe", norm_topk_prob=True)
    with pytest.raises(
        ValueError, match=f"granularity {granularity} chooses for each of them. Use --granularity fused"
    ):
        check_engine("llama.cpp", config, EXPERTS, granularity)
    check_engine("llama.cpp", config, EXPERTS, granularity="fused")
    check_engine("llama.cpp", config, EXPERTS[:1], granularity=granularity)


def test_what_llama_cpp_would_compute_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_topk_prob"):
        check_engine("llama.cpp", tiny_config("qwen3_moe", norm_topk_prob=False), granularity="fused")
    check_engine("transformers", tiny_config("qwen3_moe", norm_topk_prob=False))
