"""Tiny models of every family that is written as GGUF: llama.cpp computes what transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from evaluators import tune_tiny
from llama_cpp_logits import logits_in_llama_cpp
from qra_backends.ggml import library
from tiny_families import save_tiny, tiny_config
from transformers import AutoModelForCausalLM

from qra_eval.export import export
from qra_eval.export.gguf import EXPERT_PATTERN, make_tensor_namer, reorder_rows
from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import list_family_issues
from qra_search.errors import BadInput

pytestmark = pytest.mark.skipif(
    library.get_missing_reason() is not None, reason=str(library.get_missing_reason())
)

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
    model: Any = AutoModelForCausalLM.from_pretrained(
        save_tiny(family, folder / "model", **more), dtype=torch.float32
    )
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases are all ones and zeros
            parameter.data.add_(torch.randn(parameter.shape, generator=random), alpha=0.2)
    model.save_pretrained(folder / "model")
    settings = {
        "quantization": {"backend": {"name": "gguf", "types": ["Q4_0", "Q8_0"]}},
        "space": {"bits": (4, 8, 16), "ranks": (4, 8), "granularity": granularity},
    }
    return {
        name: tune_tiny(folder / "model", folder / name, levels, (4, 4, 8, 8), **settings)
        for name, levels in {"typed": ("Q4_0", "Q8_0"), "floats": (16,)}.items()
    }


def test_llama_cpp_computes_the_same_logits_from_the_same_numbers(
    runs: dict[str, TunedRun], tmp_path: Path
) -> None:
    """Weights in float32, which its kernels do not round; factors are in bfloat16, and GELU comes from a table."""
    done = export(runs["floats"], "gguf", tmp_path / "gguf")
    mine, theirs, alone = logits_in_llama_cpp(runs["floats"], done.path)
    apart, untuned = (mine - theirs).abs(), (mine - alone).abs()
    assert apart.max() < 5e-3 * mine.abs().max(), "the model"
    assert apart.mean() < 0.05 * untuned.mean(), "the adapter"


def test_every_searched_tensor_of_the_file_is_the_plans_own(
    runs: dict[str, TunedRun], tmp_path: Path
) -> None:
    run = runs["typed"]
    exported = export(run, "gguf", tmp_path / "gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported.path / "model.gguf").tensors}
    name_of = make_tensor_namer(run.config)
    for name in run.levels:
        tensor, weight = tensors[f"{name_of(name)}.weight"], run.dequantize_weight(name)
        stored, number = gguf.dequantize(tensor.data, tensor.tensor_type), EXPERT_PATTERN.search(name)
        stored = stored if number is None else stored[int(number[1])]
        assert np.array_equal(stored, reorder_rows(run.config, name, weight).numpy()), name
    assert exported.same_next_token > 0.5


def test_a_quantized_head_keeps_its_bias(tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(save_tiny("phi", tmp_path / "model"))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "model")
    run = tune_tiny(
        tmp_path / "model",
        tmp_path / "run",
        ["Q8_0"],
        [4],
        steps=1,
        dtype="bfloat16",
        quantization={"backend": "gguf", "embeddings": [8]},
        space={"bits": (8,), "ranks": (4,)},
    )
    done = export(run, "gguf", tmp_path / "gguf")
    (bias,) = [t for t in gguf.GGUFReader(done.path / "model.gguf").tensors if t.name == "output.bias"]
    assert bias.data == pytest.approx(model.lm_head.bias.detach().to(torch.bfloat16).float().numpy())
    assert done.same_next_token > 0.5


def test_experts_of_several_types_are_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="experts of a layer in one tensor.*--granularity fused"):
        export(tuned("qwen3_moe", tmp_path, "expert")["typed"], "gguf", tmp_path / "out")


@pytest.mark.parametrize(
    "family, more, word",
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("gemma3", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "window"),
        ("gpt2", {}, "convert_hf_to_gguf"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, more: dict[str, Any], word: str) -> None:
    (reason,) = list_family_issues(tiny_config(family, **more))
    assert word in reason
