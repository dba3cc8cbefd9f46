"""What was exported, loaded by the other tool in a process without this project, computes what it should."""

from __future__ import annotations

import pytest
import torch

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def apart(one, other) -> float:
    return max(float((a - b[..., : a.shape[-1]]).abs().max()) for a, b in zip(one, other, strict=True))


def size(logits) -> float:
    return max(float(a.abs().max()) for a in logits)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "mixtral"])
def test_a_merged_model_loads_in_plain_transformers_to_the_tuned_models_logits(family, runs, loaded):
    live = runs[family].live_logits
    assert apart(live, loaded(family, "merged")) < 1e-5 * size(live)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_model_with_its_gguf_adapter_computes_the_tuned_models_logits(family, runs, loaded):
    """Codes of 2 to 4 bits are kept, q and k go to llama.cpp's order and back, and the adapter has its own scale."""
    live = runs[family].live_logits
    assert apart(live, loaded(family, "gguf")) < 1e-5 * size(live)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_keeps_the_weights_of_the_reference_backend_to_the_bit(family, exported):
    assert exported[family, "gguf"].largest_logit_difference == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_compressed_tensors_loads_to_the_weights_that_were_chosen(family, runs, loaded):
    from qra_eval.export.grids import integer_grid

    def weight(linear):
        if linear.bits == 16:
            return runs[family].weight(linear)
        return integer_grid(
            runs[family].weight(linear), linear.bits, 64, symmetric=True, scale_dtype=torch.float32
        ).weight()

    mine = runs[family].logits(runs[family].with_weights(weight))
    assert apart(mine, loaded(family, "compressed-tensors")) < 1e-5 * size(mine)


def test_transformers_still_reads_mixed_widths_wrongly_when_told_to_dequantize(runs, loaded):
    """Why `load_compressed` and docs/serve.md load it packed; once this fails they need not."""
    import math

    model = runs["llama"].with_weights(runs["llama"].weight, adapter=False)
    base = runs["llama"].logits(model)
    wrong = apart(base, loaded("llama", "compressed-dequantize"))
    assert math.isnan(wrong) or wrong > 0.5 * size(base)


def test_compressed_tensors_keeps_a_symmetric_grid_exactly(runs, exported, loaded):
    live = runs["int8"].live_logits
    assert apart(live, loaded("int8", "compressed-tensors")) < 1e-5 * size(live)
    assert any("keep the grid" in note for note in exported["int8", "compressed-tensors"].notes)


@pytest.mark.parametrize("family", FAMILIES)
def test_gptqmodel_loads_the_bits_of_each_linear(family, runs, exported, loaded):
    from qra_eval.export.grids import integer_grid

    def weight(linear):
        if linear.bits == 16:
            return runs[family].weight(linear)
        return integer_grid(
            runs[family].weight(linear), linear.bits, 64, symmetric=False, scale_dtype=torch.float16
        ).weight()

    mine = runs[family].logits(runs[family].with_weights(weight))
    assert apart(mine, loaded(family, "gptqmodel")) < 1e-2 * size(mine)  # GPTQModel computes in 16 bits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["compressed-tensors", "gptqmodel"])
def test_an_export_that_rounds_again_says_so(family, format, exported):
    assert any("rounded again" in note for note in exported[family, format].notes)
