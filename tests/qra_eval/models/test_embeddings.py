"""Embeddings and heads in 8 bits: bytes, values, gradients, and the way to a run's folder and back."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny_config_model
from torch import nn

from qra_eval import load
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.models.embeddings import ROWS, QuantizedEmbedding, QuantizedHead, RowTable, dequantize_embeddings
from qra_eval.models.load import load_model
from qra_eval.models.tiny import byte_tokenizer
from qra_eval.quantized.bank import tensor_bytes
from qra_search.config import QuantizationConfig, SpaceConfig, TrainingConfig

FAMILIES = ("llama", "mistral", "qwen3", "gemma3", "gpt2", "opt", "phi", "gpt_neox", "mixtral")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    def make(family):
        folder = tmp_path_factory.mktemp(family)
        tiny_config_model(family, normalised=False).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_rows_largest_value_is_kept_and_no_value_is_off_by_more_than_a_step(dtype):
    weight = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[7] = 0
    rows = RowTable(weight).rows(slice(None))
    step = weight.float().abs().amax(1, keepdim=True) / 127
    assert rows.dtype == dtype
    assert ((rows.float() - weight.float()).abs() <= 1.01 * step).all()
    assert torch.equal(rows[7], weight[7])


def test_the_head_gives_the_logits_and_gradient_of_its_dequantized_weight():
    head = nn.Linear(16, 2 * ROWS + 5, bias=True).requires_grad_(False)
    quantized = QuantizedHead(RowTable(head.weight), head)
    plain = nn.Linear(16, 2 * ROWS + 5)
    plain.weight.data, plain.bias.data = quantized.weight, head.bias
    x = torch.randn(3, 4, 16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    pull = torch.randn(3, 4, 2 * ROWS + 5)
    (quantized(x) * pull).sum().backward()
    (plain(y) * pull).sum().backward()
    assert torch.allclose(quantized(x), plain(y), atol=1e-5)
    assert torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_take_half_the_bytes_and_the_model_hardly_changes(family, folder_of):
    folder = folder_of(family)
    before, after = load_model(folder), load_model(folder, embeddings=8)
    table, head = before.model.get_input_embeddings().weight, before.model.get_output_embeddings().weight
    tables = [table] if head.data_ptr() == table.data_ptr() else [table, head]
    saved = sum(t.numel() - 2 * len(t) for t in tables)  # a byte a value, less two for the scale of each row
    assert tensor_bytes(before.model) - tensor_bytes(after.model) == saved
    assert after.fingerprint != before.fingerprint
    ids = torch.arange(40)[None] % 200
    one, other = (m.model(input_ids=ids, use_cache=False).logits.float() for m in (before, after))
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_a_run_with_8_bit_embeddings_reloads_exactly_and_exports_plain_ones(family, folder_of, tmp_path):
    options = {
        "quantization": {"backend": "reference", "cache": str(tmp_path / "bank")},
        "space": SpaceConfig(bits=(3, 8), ranks=(4,)),
        "training": TrainingConfig(steps=2, batch_size=2, validation_rows=4, test_rows=2),
    }
    whole, half = (
        QuantizedLoRAEvaluator(
            folder_of(family),
            **{**options, "quantization": QuantizationConfig(**options["quantization"], embeddings=e)},
        )
        for e in (16, 8)
    )
    plan = half.space.uniform(3, 4)
    assert half.space.memory_bytes(plan) < whole.space.memory_bytes(plan)
    assert half.evaluate(plan).loss == pytest.approx(whole.evaluate(plan).loss, rel=0.02)
    assert half.prior().bits_damage.shape == whole.prior().bits_damage.shape
    half.tune(plan, steps=2, folder=tmp_path / "run")  # compares the logits of what is reloaded, which must be equal
    model, _ = load(tmp_path / "run")
    assert isinstance(model.get_base_model().get_input_embeddings(), QuantizedEmbedding)
    live = sum(t.nbytes for n, t in model.named_parameters() if ".lora_" not in n)
    assert live < whole.space.memory_bytes(plan)
    export(tmp_path / "run", "merged", tmp_path / "merged", dtype="float32")
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    run = TunedRun(tmp_path / "run")
    tables = run.base.get_input_embeddings().weight, model.get_base_model().get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, tables[0].float())
    assert torch.equal(*tables)


def test_dequantizing_leaves_a_model_alone_that_has_16_bit_embeddings(folder_of):
    model = load_model(folder_of("llama")).model
    embedding = model.get_input_embeddings()
    dequantize_embeddings(model)
    assert model.get_input_embeddings() is embedding


def test_a_tied_table_is_still_shared_after_the_round_trip(folder_of):
    model = load_model(folder_of("llama"), embeddings=8).model
    assert model.get_output_embeddings().table is model.get_input_embeddings().table
    dequantize_embeddings(model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_unknown_kind_of_embedding_is_refused_with_the_mend(folder_of, monkeypatch):
    from qra_eval.models import embeddings

    model = load_model(folder_of("llama")).model
    model.get_input_embeddings().max_norm = 1.0
    with pytest.raises(ValueError, match="leave quantization.embeddings at 16"):
        embeddings.quantize_embeddings(model)
