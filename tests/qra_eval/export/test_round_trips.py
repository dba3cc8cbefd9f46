"""What was exported, loaded by the other tool in a process without this project, computes what was tuned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

FAMILIES = ("llama", "qwen2")
"""All others that are written as GGUF are in `test_gguf_families.py`."""


def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b[..., : a.shape[-1]]).abs().max()) for a, b in zip(one, other, strict=True))


def size(logits: list[torch.Tensor]) -> float:
    return max(float(a.abs().max()) for a in logits)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "mixtral"])
def test_a_merged_model_loads_in_plain_transformers_to_the_tuned_models_logits(
    family: str, runs: Any, loaded: Any
) -> None:
    live = runs[family].live_logits
    assert apart(live, loaded(family, "merged")) < 1e-5 * size(live)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_model_with_its_gguf_adapter_computes_the_tuned_models_logits(
    family: str, runs: Any, exported: Any, loaded: Any
) -> None:
    """q and k go to llama.cpp's order and back, and the adapter has its own scale."""
    live = runs[family].live_logits
    assert exported[family, "gguf"].largest_logit_difference == 0
    assert apart(live, loaded(family, "gguf")) < 1e-5 * size(live)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_packed_integers_load_to_the_tuned_model(family: str, runs: Any, exported: Any, loaded: Any) -> None:
    name, format = f"{family}-compressed-tensors", "compressed-tensors"
    live, done = runs[name].live_logits, exported[name, format]
    assert done.largest_logit_difference <= 1e-5 * size(live)
    assert any("copies of the plan's own" in note for note in done.notes)
    assert apart(live, loaded(name, format)) < 1e-5 * size(live)


def test_transformers_still_reads_mixed_widths_wrongly_when_told_to_dequantize(runs: Any, loaded: Any) -> None:
    """Why the export and docs/serve.md load it packed; once this fails they need not."""
    run = runs["llama-compressed-tensors"]
    base = run.logits(run.with_weights(run.weight, adapter=False))
    wrong = apart(base, loaded("llama-compressed-tensors", "compressed-dequantize"))
    assert math.isnan(wrong) or wrong > 0.5 * size(base)
