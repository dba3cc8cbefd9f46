"""A run in this project's own formats: what the folder holds, and that it is the run's to the bit and to the byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from qra_backends.layout import Layout
from safetensors.torch import load_file

from qra_eval.export import Exported, export
from qra_eval.export.tuned import TunedRun


@pytest.fixture(scope="module", params=["llama-own", "mistral-own"])
def run(request: pytest.FixtureRequest, runs: Any) -> TunedRun:
    return runs[request.param]


@pytest.fixture(scope="module")
def done(run: TunedRun, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(run, "vllm", tmp_path_factory.mktemp("own") / "out")


def test_the_folder_holds_the_runs_weights_to_the_bit_and_to_the_byte(run: TunedRun, done: Exported) -> None:
    tensors = load_file(done.path / "model.safetensors")
    layout = Layout.of(json.loads((done.path / "config.json").read_text())["quantization_config"])
    stored = wanted = 0
    weights = {m.name: run.weight(m) for m in run.linears if m.name in layout.levels}
    weights |= {name: run.backend.dequantize(module) for name, module in run.tables.items()}
    assert weights.keys() == layout.levels.keys() and len(run.tables) > 0
    for name, weight in weights.items():
        own = {key: tensors.pop(f"{name}.{key}") for key in layout.expected(name, *weight.shape, run.dtype)}
        assert not any(value.is_floating_point() for value in own.values())
        shape = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        module = layout.module(name, own, **shape, dtype=run.dtype)
        assert torch.equal(layout.backend.dequantize(module), weight)
        stored += sum(value.nbytes for value in own.values())
        wanted += run.backend.storage(layout.levels[name]).bytes(*weight.shape)
    assert stored == wanted
    assert not any("embed_tokens" in key or "lm_head" in key for key in tensors)
    assert done.largest_logit_difference <= 1e-6 * done.largest_logit  # products of the head are blocked otherwise
    assert "--max-lora-rank 8" in done.notes[-1]
