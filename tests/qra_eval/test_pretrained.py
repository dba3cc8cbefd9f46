"""transformers and PEFT load an exported run by themselves, in a process that only imports this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluators import make_evaluator
from qra_backends.served.layout import QUANT_METHOD, SEPARATOR, Layout, Shards
from safetensors.torch import load_file
from tiny_families import tiny_config_model
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from qra_eval import load
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.models.tiny import byte_tokenizer
from qra_eval.pretrained import NEEDED_IMPORT
from qra_search.schemas import Plan

IDS = torch.arange(40, 64)[None]
FRESH = """
import sys, torch
import qra_eval.pretrained
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
folder, out = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(folder)
model = PeftModel.from_pretrained(base, folder + "/adapter", autocast_adapter_dtype=False)
with torch.no_grad():
    logits = model(input_ids=torch.arange(40, 64)[None]).logits
save_file({"logits": logits, "bytes": torch.tensor(model.get_memory_footprint())}, out)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of trellis, packed, int8 and unquantized linears, and one table."""
    folder = tmp_path_factory.mktemp("pretrained")
    tiny_config_model("llama", normalised=False).save_pretrained(folder / "model")  # its head is tied
    byte_tokenizer().save_pretrained(folder / "model")
    levels = (2, 3, 8, 16)
    evaluator = make_evaluator(
        str(folder / "model"),
        "arithmetic",
        device="cpu",
        training={"batch_size": 2},
        finetune={"test_rows": 2},
        quantization={
            "backend": {2: "trellis", 3: "reference", 8: "bitsandbytes-int8"},
            "embeddings": [2],
            "cache": str(folder / "bank"),
        },
        space={"bits": levels, "ranks": (0, 4)},
    )
    count = len(evaluator.space) - 1
    plan = Plan((*(levels[i % 4] for i in range(count)), 2), (*((4, 0, 4)[i % 3] for i in range(count)), 0))
    evaluator.tune(plan, steps=2, folder=folder / "run")
    return folder / "run"


def test_a_fresh_process_loads_it_to_the_bit_at_the_plans_bytes(run: Path, tmp_path: Path) -> None:
    done = export(run, "peft", tmp_path / "out")
    command = [sys.executable, "-c", FRESH, done.path, tmp_path / "found"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stderr
    found = load_file(tmp_path / "found")
    with torch.no_grad():
        expected = load(run, device="cpu")[0](input_ids=IDS).logits
    assert done.largest_logit_difference == 0 and torch.equal(found["logits"], expected)
    assert found["bytes"] == json.loads((done.path / "plan.json").read_text())["memory_bytes"]
    assert not any(word in said for word in ("corrupted", "newly", "kernels")), said


def test_without_the_import_transformers_refuses_and_says_what_is_missing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export(run, "peft", tmp_path / "out")
    for known in (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING):
        monkeypatch.delitem(known, QUANT_METHOD)  # what the import put there
    with pytest.raises(ValueError, match=NEEDED_IMPORT):
        AutoModelForCausalLM.from_pretrained(done.path)


@pytest.mark.parametrize(("family", "backend"), [("qwen3_moe", "reference"), ("llama", "bitsandbytes-nf4")])
def test_adapters_of_experts_are_found_and_nothing_is_stored_twice(
    family: str, backend: str, tmp_path: Path
) -> None:
    tiny_config_model(family, normalised=False).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    evaluator = make_evaluator(
        str(tmp_path / "model"),
        "arithmetic",
        device="cpu",
        training={"batch_size": 2, "learning_rate": 0.05},
        finetune={"test_rows": 2, "sample_answers": 0},
        space={"bits": (4,), "ranks": (4,)},
        quantization={"backend": backend, "embeddings": 16, "cache": str(tmp_path / "bank")},
    )
    plan = evaluator.space.uniform(4, 4)
    assert plan is not None
    evaluator.tune(plan, steps=2, folder=tmp_path / "run")
    done = export(tmp_path / "run", "peft", tmp_path / "out")
    assert done.largest_logit_difference == 0
    searched = [f"{name}." for name in TunedRun(tmp_path / "run").levels]
    rest = load_file(done.path / "rest.safetensors")
    assert rest and not [key for key in rest if key.startswith(tuple(searched)) and not key.endswith(".bias")]


def test_vllms_fused_matrices_are_made_of_its_tensors(run: Path, tmp_path: Path) -> None:
    tuned, done = TunedRun(run), export(run, "vllm", tmp_path / "served")
    assert "--max-lora-rank 8" in done.notes[-1]  # the least that vLLM has
    config = json.loads((done.path / "config.json").read_text())["quantization_config"]
    layout, (table,) = Layout.from_config(config), tuned.tables
    assert layout.embedding == layout.head == table
    weights = {name: tuned.dequantize_weight(name) for name in tuned.levels}
    weights[table] = tuned.backend.dequantize(tuned.tables[table])
    tensors = {key: t for file in done.path.glob("*.safetensors") for key, t in load_file(file).items()}
    attention, mlp = "model.layers.1.self_attn.", "model.layers.0.mlp."
    for names in (
        [attention + end for end in ("q_proj", "k_proj", "v_proj")],
        [mlp + "gate_proj", mlp + "up_proj"],
        [table],
    ):
        shards = Shards(layout, {name: tuple(weights[name].shape) for name in names}, tuned.dtype)
        buffers = {key: torch.zeros(count, dtype=dtype) for key, (count, dtype) in shards.buffers.items()}
        for i, name in enumerate(names):
            for key in shards.parts[i]:
                stored = name + (SEPARATOR if name in layout.levels else ".") + key
                shards.copy_shard(buffers[key], key, i, tensors[stored])
        for name, module in zip(names, shards.make_modules(buffers), strict=True):
            found = layout.backend.dequantize(module) if name in layout.levels else module.weight
            assert torch.equal(found, weights[name])
