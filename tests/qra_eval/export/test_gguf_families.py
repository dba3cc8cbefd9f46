"""Tiny models of every family that is written as GGUF: llama.cpp computes what transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from evaluators import make_evaluator
from qra_backends.ggml import library
from tiny_families import tiny_config, tiny_config_model

from qra_eval.export import check, export, llama_cpp
from qra_eval.export.gguf_tensors import EXPERT, row_order, tensor_namer
from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import FAMILIES, family_reasons, layer_types
from qra_eval.models.tiny import byte_tokenizer
from qra_search.config import QuantizationConfig, SpaceConfig
from qra_search.space.plan import Plan

pytestmark = [
    pytest.mark.skipif(library.missing() is not None, reason=str(library.missing())),
    pytest.mark.skipif(not llama_cpp.installed(), reason="llama.cpp is not installed"),
]

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": LINEAR}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3_text": ("gemma3", {"layers": 6}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
}
"""By model type: the family of `tiny_families`, and what a config has otherwise."""


@pytest.fixture(scope="module", params=list(CASES))
def runs(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TunedRun]:
    return tuned(request.param, tmp_path_factory.mktemp(request.param))


def tuned(kind: str, folder: Path, granularity: Any = "fused") -> dict[str, TunedRun]:
    """A run with every second group in another type and with another rank, and one that is not quantized."""
    family, more = CASES[kind]
    model = tiny_config_model(family, normalised=False, **more)
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases are all ones and zeros
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.2)
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    evaluator = make_evaluator(
        str(folder / "model"),
        "arithmetic",
        quantization=QuantizationConfig(
            backend={"name": "gguf", "types": ["Q4_0", "Q8_0"]}, embeddings=16, cache=str(folder / "bank")
        ),
        space=SpaceConfig(bits=(4, 8, 16), ranks=(4, 8), granularity=granularity),
        training={"learning_rate": 2e-2, "batch_size": 2},
        finetune={"test_rows": 2, "sample_answers": 0},
        dtype="float32",
    )
    groups = range(len(evaluator.space))
    ranks = tuple((4, 8)[i // 2 % 2] for i in groups)
    for name, levels in {"typed": ("Q4_0", "Q8_0"), "floats": (16, 16)}.items():
        evaluator.tune(Plan(tuple(levels[i % 2] for i in groups), ranks), steps=3, folder=folder / name)
    evaluator.close()
    return {name: TunedRun(folder / name) for name in ("typed", "floats")}


def test_llama_cpp_computes_the_same_logits_from_the_same_numbers(runs: dict[str, TunedRun], tmp_path: Path) -> None:
    """Weights in float32, which its kernels do not round; factors are in bfloat16, and GELU comes from a table."""
    run = runs["floats"]
    export(run, "gguf", tmp_path / "gguf")
    prompts = [ids[0].tolist() for ids in run.input_ids]
    theirs = torch.cat(llama_cpp.logits(tmp_path / "gguf" / "model.gguf", tmp_path / "gguf" / "adapter.gguf", prompts))
    alone = torch.cat(llama_cpp.logits(tmp_path / "gguf" / "model.gguf", None, prompts))
    mine = torch.cat([logits[0] for logits in run.live_logits])
    apart, untuned = (mine - theirs).abs(), (mine - alone).abs()
    assert apart.max() < 5e-3 * mine.abs().max(), "the model"
    assert apart.mean() < 0.05 * untuned.mean(), "the adapter"


def test_every_searched_tensor_of_the_file_is_the_plans_own(runs: dict[str, TunedRun], tmp_path: Path) -> None:
    run = runs["typed"]
    exported = export(run, "gguf", tmp_path / "gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported.path / "model.gguf").tensors}
    name_of = tensor_namer(run.config)
    for linear in run.linears:
        tensor = tensors[f"{name_of(linear.name)}.weight"]
        order = row_order(run.config, linear.name, linear.out_features)
        weight = run.weight(linear) if order is None else run.weight(linear)[order]
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        number = EXPERT.search(linear.name)
        found = found if number is None else found[int(number[1])]
        assert np.array_equal(found, weight.numpy()), linear.name
    assert any("loaded in llama.cpp" in note for note in exported.notes)


def test_a_quantized_head_keeps_its_bias(tmp_path: Path) -> None:
    model = tiny_config_model("phi", normalised=False)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    evaluator = make_evaluator(
        str(tmp_path / "model"), "arithmetic", training={"batch_size": 2}, space={"bits": (8,), "ranks": (4,)},
        finetune={"test_rows": 2, "sample_answers": 0},
        quantization={"backend": "gguf", "embeddings": [8], "cache": str(tmp_path / "bank")},
    )  # fmt: skip
    plan = evaluator.space.uniform(8, 4)
    assert plan is not None
    evaluator.tune(plan, steps=1, folder=tmp_path / "run")
    done = export(tmp_path / "run", "gguf", tmp_path / "gguf")
    (bias,) = [t for t in gguf.GGUFReader(done.path / "model.gguf").tensors if t.name == "output.bias"]
    assert bias.data == pytest.approx(model.lm_head.bias.to(torch.bfloat16).float().numpy())
    assert any("loaded in llama.cpp" in note for note in done.notes)


def test_experts_of_several_types_are_refused_with_the_mend(tmp_path: Path) -> None:
    reasons = check(tuned("qwen3_moe", tmp_path, "expert")["typed"], "gguf")
    assert len(reasons) == 1 and "--granularity fused" in reasons[0]


@pytest.mark.parametrize(
    "family, more, word",
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("gemma3", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "window"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("gpt2", {}, "convert_hf_to_gguf"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, more: dict[str, Any], word: str) -> None:
    (reason,) = family_reasons(tiny_config(family, **more))
    assert word in reason


def test_the_pattern_of_windows_is_that_of_transformers() -> None:
    for name, family in (("gemma2", "gemma2"), ("gemma3", "gemma3_text")):
        config = tiny_config(name, layers=13)
        assert list(config.layer_types) == layer_types(13, FAMILIES[family].window)
