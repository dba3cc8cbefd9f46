"""Embeddings and heads as searched tables: bytes, values, gradients, damage, and the way to a run's folder and back."""

from __future__ import annotations

import functools

import pytest
import torch
from evaluators import make_evaluator, measure_reload
from qra_backends import make_backend
from tiny_families import save_tiny
from torch import nn

from qra_eval import load
from qra_eval.evaluators import quantized_lora
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.models import embeddings
from qra_eval.models.embeddings import (
    Table,
    TableEmbedding,
    TableHead,
    find_embeddings,
    install_embeddings,
    restore_embeddings,
)
from qra_eval.models.load import load_model
from qra_search.schemas import Plan
from qra_search.sections import SpaceConfig

FAMILIES = ("llama", "mistral", "qwen3", "gemma3", "gpt2", "opt", "phi", "gpt_neox", "mixtral")
TIED = {"llama", "gemma3", "gpt2", "opt"}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda family: str(save_tiny(family, tmp_path_factory.mktemp(family))))


def make_table(weight, name="reference", bits=8):
    backend, linear = make_backend(name), nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = weight
    table = Table(weight, backend)
    table.set_base(module=backend.quantize(linear, bits, hessian=torch.eye(weight.shape[1])))
    return table


@pytest.mark.parametrize("name", ["reference", "trellis"])
def test_the_head_gives_the_logits_and_gradient_of_its_dequantized_weight(name, monkeypatch):
    monkeypatch.setattr(embeddings, "HEAD_ROWS", 20)
    head = nn.Linear(16, 45).requires_grad_(False)
    quantized = TableHead(make_table(head.weight, name, 3), head)
    x = torch.randn(3, 4, 16, requires_grad=True)
    pull = torch.randn(3, 4, 45)
    logits = quantized(x)
    (gradient,) = torch.autograd.grad((logits * pull).sum(), x)
    expected = nn.functional.linear(x, quantized.weight, head.bias)
    assert not torch.equal(quantized.weight, head.weight)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradient, torch.autograd.grad((expected * pull).sum(), x)[0], atol=1e-5, rtol=1e-5
    )


def test_rows_are_looked_up_none_too_and_scaled_where_a_model_scales_them_by_a_number():
    """Not by a buffer: XGLM's."""
    embedding = nn.Embedding(64, 32)
    embedding.embed_scale = 3.0
    table = make_table(embedding.weight)
    looked_up, ids = TableEmbedding(table, embedding), torch.tensor([[3, 1]])
    torch.testing.assert_close(looked_up(ids), 3.0 * table.weight[ids])
    assert looked_up(ids[:, :0]).shape == (1, 0, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_tables_computes_as_before_and_with_all_of_them_in_8_bits_nearly_so(family, folder_of):
    model, backend = load_model(folder_of(family)).model, make_backend("reference")
    ids = torch.arange(40)[None] % 200
    before = model(input_ids=ids, use_cache=False).logits.float()
    found = find_embeddings(model)
    assert len(found) == (1 if family in TIED else 2)
    tables = install_embeddings(model, backend)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits.float(), before)
    for name, table in tables.items():
        table.set_base(module=backend.quantize(found[name], 8))
    after = model(input_ids=ids, use_cache=False).logits.float()
    assert 0 < (before - after).abs().max() < 0.05 * before.abs().max()
    restore_embeddings(model)
    assert type(model.get_output_embeddings()) is nn.Linear
    assert torch.allclose(
        model(input_ids=ids, use_cache=False).logits.float(), after, atol=0.02 * before.abs().max()
    )


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return {
        "quantization": {"backend": "reference", "cache": str(tmp_path_factory.mktemp("bank"))},
        "space": SpaceConfig(bits=(3, 8), ranks=(4,)),
        "training": {"batch_size": 2},
        "evaluation": {"steps": 2, "validation_rows": 4},
        "finetune": {"test_rows": 2},
    }


def evaluator_of(folder, options, choices, **more):
    quantization = {**options["quantization"], "embeddings": choices, **more}
    return make_evaluator(folder, **{**options, "quantization": quantization})


def base_bytes(model):
    held = sum(t.nbytes for t in {t.data_ptr(): t for t in model.buffers()}.values())
    return held + sum(t.nbytes for n, t in model.named_parameters() if ".lora_" not in n and not t.is_meta)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_tables_are_groups_whose_damage_is_measured_and_a_tuned_run_reloads_and_exports(
    family, folder_of, options, tmp_path
):
    evaluator = evaluator_of(folder_of(family), options, [3, 6, 8, 16])
    space = evaluator.space
    tables = [group for group in space.groups if group.is_embedding]
    assert len(tables) == (1 if family in TIED else 2)
    assert all((g.bits, g.ranks) == ((3, 6, 8, 16), (0,)) for g in tables)
    assert {g.bits for g in space.groups[: -len(tables)]} == {(3, 8)} and space.ranks == (0, 4)
    narrow, rows = space.uniform(3, 4), tables[0].linears[0]
    wide = Plan((*narrow.bits[:-1], 8), narrow.ranks)
    storage = evaluator.quantized_model.backend.storage
    less = storage(8).bytes(rows.out_features, rows.in_features) - storage(3).bytes(
        rows.out_features, rows.in_features
    )
    assert space.memory_bytes(wide) - space.memory_bytes(narrow) == less
    assert evaluator.evaluate(narrow).loss != evaluator.evaluate(wide).loss
    damage = evaluator.sensitivities().bits_damage[-1]
    assert damage[0] > damage[1] > damage[2] > damage[3] == 0
    evaluator.tune(narrow, steps=2, folder=tmp_path / "run")
    assert measure_reload(evaluator, narrow, tmp_path / "run") == 0
    model, _ = load(tmp_path / "run")
    assert isinstance(model.get_base_model().get_input_embeddings(), TableEmbedding)
    assert base_bytes(model) < space.memory_bytes(narrow)
    export(tmp_path / "run", "merged", tmp_path / "merged", dtype="float32")
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    kept = TunedRun(tmp_path / "run").base.get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, kept.float())
    assert torch.equal(kept, model.get_base_model().get_input_embeddings().weight)


def test_the_head_is_calibrated_by_what_it_reads_and_one_choice_is_of_every_plan(folder_of, options):
    rounded = evaluator_of(folder_of("llama"), options, 4)
    calibrated = evaluator_of(folder_of("llama"), options, 4, backend="reference-gptq")
    assert rounded.space.groups[-1].bits == (4,) and rounded.space.uniform(3, 4).bits[-1] == 4
    inputs = head_inputs(calibrated)
    errors = []
    for evaluator in (rounded, calibrated):
        evaluator.tuner.switcher.quantize_plan(evaluator.space.uniform(3, 4))
        name = evaluator.space.names[-1]
        model = evaluator.quantized_model
        weight = model.backend.dequantize(model.bank.load_module(name, 4)).float()
        errors.append(((weight - model.tables[name].weight.float()) @ inputs.T).square().sum())
    assert errors[1] < errors[0]


def test_tables_and_linears_in_trellis_codes_are_trained_with_their_scales_and_reload(
    folder_of, options, tmp_path
):
    backend = {3: "trellis", 8: "reference"}
    along = {**options, "training": {**options["training"], "scales": True}}
    evaluator = evaluator_of(folder_of("llama"), along, [3, 8], backend=backend)
    narrow = evaluator.space.uniform(3, 4)
    assert narrow.bits[-1] == 3 and evaluator.evaluate(narrow).loss < 10
    evaluator.tune(narrow, steps=2, folder=tmp_path)
    assert measure_reload(evaluator, narrow, tmp_path) == 0
    model, _ = load(tmp_path)
    assert base_bytes(model) < evaluator.space.memory_bytes(narrow)


def head_inputs(evaluator):
    model, seen = evaluator.quantized_model.model, []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for row in evaluator.rows("train", 32):
            model(input_ids=row.input_ids[None], use_cache=False)
    handle.remove()
    return torch.cat([x.flatten(0, -2) for x in seen]).float()


def test_embeddings_that_cannot_be_quantized_are_refused_with_the_mend(folder_of, options, monkeypatch):
    loaded = load_model(folder_of("llama"))
    model = loaded.model
    model.get_input_embeddings().max_norm = 1.0
    assert find_embeddings(model) == {}
    monkeypatch.setattr(quantized_lora, "load_model", lambda *_, **__: loaded)
    with pytest.raises(ValueError, match="use --set quantization.embeddings=16"):
        QuantizedLoRAEvaluator({"quantization": {"embeddings": 5}})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="add 16 to quantization.embeddings"):
        evaluator_of(folder_of("llama"), options, 5, backend={3: "reference", 8: "reference"})
