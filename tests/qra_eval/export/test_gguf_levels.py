"""A run on llama.cpp's own types: its export is a copy, and llama.cpp computes what was tuned."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from evaluators import make_evaluator
from qra_backends.ggml import library
from tiny_families import tiny_config_model

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export, llama_cpp
from qra_eval.export.gguf_tensors import row_order, tensor_namer
from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import FAMILIES
from qra_eval.models.tiny import byte_tokenizer
from qra_search.config import QuantizationConfig, SpaceConfig
from qra_search.engines import ENGINES
from qra_search.space.plan import Plan

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))
TYPES = ["Q3_K", "Q4_K", "Q4_0", "Q8_0"]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> QuantizedLoRAEvaluator:
    """Of a llama with rows of 256 everywhere but in down_proj, where they have 96; its rotary embedding is scaled."""
    folder = tmp_path_factory.mktemp("gguf-levels")
    more: dict[str, Any] = {"intermediate_size": 96, "head_dim": 64, "rope_parameters": LLAMA3}
    tiny_config_model("llama", normalised=False, hidden=256, layers=1, **more).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return make_evaluator(
        str(folder / "model"),
        "arithmetic",
        quantization=QuantizationConfig(
            backend={"name": "gguf", "types": TYPES}, embeddings=(3, 4, 8), cache=str(folder / "bank")
        ),
        space=SpaceConfig(bits=(3, 4, 8), ranks=(4, 8), granularity="module"),
        training={"learning_rate": 2e-2, "batch_size": 2},
        evaluation={"validation_rows": 4, "steps": 1},
        finetune={"test_rows": 4},
        dtype="float32",
    )


@pytest.fixture(scope="module")
def run(evaluator: QuantizedLoRAEvaluator, tmp_path_factory: pytest.TempPathFactory) -> TunedRun:
    space, folder = evaluator.space, tmp_path_factory.mktemp("run")
    own = [group.bits or space.bits for group in space.groups]
    ranks = [0 if group.is_embedding else (4, 8)[i % 2] for i, group in enumerate(space.groups)]
    plan = Plan(tuple(own[i][i % len(own[i])] for i in range(len(own))), tuple(ranks))
    assert set(plan.bits) == set(TYPES)
    evaluator.tune(plan, steps=2, folder=folder)
    return TunedRun(folder)


@pytest.fixture(scope="module")
def exported(run: TunedRun, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return export(run, "gguf", tmp_path_factory.mktemp("out") / "gguf")


def test_groups_are_offered_the_types_that_their_rows_allow(evaluator: QuantizedLoRAEvaluator) -> None:
    offered = {group.kind: group.bits for group in evaluator.space.groups}
    assert offered["q_proj"] is None and offered["down_proj"] == ("Q4_0", "Q8_0")
    assert {plan.bits[0] for plan in evaluator.space.uniform_plans()} == {"Q4_0", "Q8_0"}
    sensitivities = evaluator.sensitivities().bits_damage
    allowed = evaluator.space.bits_allowed
    assert (sensitivities[allowed] > 0).all()
    assert (
        sensitivities[:, evaluator.space.bits.index("Q4_0")] > sensitivities[:, evaluator.space.bits.index("Q8_0")]
    ).all()


def test_every_tensor_of_the_file_is_the_plans_own_block_for_block(run: TunedRun, exported: Any) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported.path / "model.gguf").tensors}
    name_of, stored = tensor_namer(run.config), 0
    for linear in run.linears:
        tensor = tensors[f"{name_of(linear.name)}.weight"]
        blocks, weight = run.module(linear.name).blocks, run.weight(linear)
        order = row_order(run.config, linear.name, linear.out_features)
        rows = slice(None) if order is None else order
        assert np.array_equal(tensor.data, blocks[rows].numpy())
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), weight[rows].float().numpy())
        stored += tensor.n_bytes
    (table,) = run.tables.values()
    assert np.array_equal(tensors["token_embd.weight"].data, table.blocks.numpy())
    stored += tensors["token_embd.weight"].n_bytes
    levels = {group["name"]: group["bits"] for group in run.plan["groups"]}
    wanted = sum(
        run.backend.storage(levels[linear.group]).bytes(linear.out_features, linear.in_features)
        for linear in run.linears
    )
    wanted += run.backend.storage(levels["model.embed_tokens"]).bytes(table.out_features, table.in_features)
    assert stored == wanted and any(str(wanted) in note for note in exported.notes)


def test_what_transformers_would_read_otherwise_is_not_compared_with_it(exported: Any) -> None:
    assert exported.largest_logit_difference is None
    assert any("does not read the scaled rotary embedding (llama3)" in note for note in exported.notes)


@pytest.mark.skipif(not llama_cpp.installed(), reason="llama.cpp is not installed")
def test_llama_cpp_computes_the_tuned_model(run: TunedRun, exported: Any) -> None:
    """To the rounding of inputs to 8 bits in blocks, which its CPU kernels do."""
    prompts = [ids[0].tolist() for ids in run.input_ids]
    theirs = llama_cpp.logits(exported.path / "model.gguf", exported.path / "adapter.gguf", prompts)
    alone = llama_cpp.logits(exported.path / "model.gguf", None, prompts)
    mine = [logits[0] for logits in run.live_logits]
    apart, untuned = (
        torch.cat([(a - b).abs().flatten() for a, b in zip(mine, others, strict=True)]) for others in (theirs, alone)
    )
    assert apart.mean() < 0.02 * torch.cat(mine).abs().mean()
    assert apart.mean() < 0.2 * untuned.mean(), "the adapter is in"
    assert any("loaded in llama.cpp" in note for note in exported.notes)


def test_ollama_is_told_of_both_files(exported: Any) -> None:
    lines = (exported.path / "Modelfile").read_text().splitlines()
    assert lines[:2] == ["FROM ./model.gguf", "ADAPTER ./adapter.gguf"]
    assert all((exported.path / line.split("./")[1]).is_file() for line in lines[:2])


def test_the_engines_families_are_those_that_the_export_writes() -> None:
    engine = ENGINES["llama.cpp"]
    assert set(engine.families or ()) == set(FAMILIES)
