"""A run on llama.cpp's own types: its export is a copy, and llama.cpp computes what was tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from evaluators import make_evaluator, tune_tiny
from llama_cpp_logits import logits_in_llama_cpp
from qra_backends.ggml import library
from tiny_families import save_tiny

from qra_eval.export import export
from qra_eval.export.gguf import make_tensor_namer, reorder_rows
from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import FAMILIES
from qra_eval.tuning import loading
from qra_search.engines import ENGINES

pytestmark = pytest.mark.skipif(
    library.get_missing_reason() is not None, reason=str(library.get_missing_reason())
)
TYPES = ["Q3_K", "Q4_K", "Q4_0", "Q8_0"]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SETTINGS: dict[str, Any] = {
    "quantization": {"backend": {"name": "gguf", "types": TYPES}, "embeddings": (3, 4, 8)},
    "space": {"bits": (3, 4, 8), "ranks": (4, 8), "granularity": "module"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with rows of 256 everywhere but in down_proj, where they have 96; its rotary embedding is scaled."""
    more: dict[str, Any] = {"intermediate_size": 96, "head_dim": 64, "rope_parameters": LLAMA3}
    return save_tiny("llama", tmp_path_factory.mktemp("gguf-levels") / "model", hidden=256, layers=1, **more)


@pytest.fixture(scope="module")
def run(model: Path) -> TunedRun:
    made = tune_tiny(model, model.parent / "run", TYPES, (4, 8), steps=2, **SETTINGS)
    assert {group["bits"] for group in made.plan["groups"]} == set(TYPES)
    return made


@pytest.fixture(scope="module")
def exported(run: TunedRun, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return export(run, "gguf", tmp_path_factory.mktemp("out") / "gguf")


def test_groups_are_offered_the_types_that_their_rows_allow(model: Path) -> None:
    cached = {**SETTINGS["quantization"], "cache": str(model.parent / "bank")}
    evaluator = make_evaluator(str(model), **{**SETTINGS, "quantization": cached}, training={"batch_size": 2})
    offered = {group.kind: group.bits for group in evaluator.space.groups}
    assert offered["q_proj"] is None and offered["down_proj"] == ("Q4_0", "Q8_0")
    assert {plan.bits[0] for plan in evaluator.space.uniform_plans()} == {"Q4_0", "Q8_0"}
    sensitivities = evaluator.sensitivities().bits_damage
    allowed = evaluator.space.bits_allowed
    assert (sensitivities[allowed] > 0).all()
    narrow, wide = (sensitivities[:, evaluator.space.bits.index(level)] for level in ("Q4_0", "Q8_0"))
    assert (narrow > wide).all()


def test_every_tensor_of_the_file_is_the_plans_own_block_for_block(run: TunedRun, exported: Any) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported.path / "model.gguf").tensors}
    name_of, stored, wanted = make_tensor_namer(run.config), 0, 0
    levels = loading.read_levels(run.plan)
    for name, module in {**run.quantized_linears, **run.tables}.items():
        tensor = tensors[f"{name_of(name)}.weight"]
        assert np.array_equal(tensor.data, reorder_rows(run.config, name, module.blocks).numpy())
        weight = reorder_rows(run.config, name, run.backend.dequantize(module)).float()
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), weight.numpy())
        stored += tensor.n_bytes
        wanted += run.backend.storage(levels[name]).bytes(module.out_features, module.in_features)
    assert stored == wanted and any(str(wanted) in note for note in exported.notes)


def test_llama_cpp_computes_the_tuned_model(run: TunedRun, exported: Any) -> None:
    """To the rounding of inputs to 8 bits in blocks, which its CPU kernels do."""
    mine, theirs, alone = logits_in_llama_cpp(run, exported.path)
    apart, untuned = (mine - theirs).abs().mean(), (mine - alone).abs().mean()
    assert apart < 0.02 * mine.abs().mean() and apart < 0.2 * untuned, "the adapter is in"
    assert exported.largest_logit_difference == float((mine - theirs).abs().max())


def test_ollama_is_told_of_both_files(exported: Any) -> None:
    lines = (exported.path / "Modelfile").read_text().splitlines()
    assert lines[:2] == ["FROM ./model.gguf", "ADAPTER ./adapter.gguf"]
    assert all((exported.path / line.split("./")[1]).is_file() for line in lines[:2])


def test_the_engines_families_are_those_that_the_export_writes() -> None:
    engine = ENGINES["llama.cpp"]
    assert set(engine.families or ()) == set(FAMILIES)
