"""transformers and PEFT load an exported run by themselves, in a process that only imports this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_families import tiny_config_model

from qra_eval import load
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.models.tiny import byte_tokenizer
from qra_search.space.space import Plan

IDS = torch.arange(40, 64)[None]
FRESH = """
import sys, torch
import qra_eval
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


def test_a_fresh_process_loads_trellis_packed_and_unquantized_weights_to_the_bit_at_the_plans_bytes(tmp_path: Path):
    tiny_config_model("llama", normalised=False).save_pretrained(tmp_path / "model")  # its head is tied
    byte_tokenizer().save_pretrained(tmp_path / "model")
    levels = (2, 3, 8, 16)
    evaluator = QuantizedLoRAEvaluator(
        str(tmp_path / "model"), "arithmetic", device="cpu", training={"batch_size": 2}, finetune={"test_rows": 2},
        quantization={"backend": {2: "trellis", 3: "reference", 8: "bitsandbytes-int8"}, "embeddings": [2],
                      "cache": str(tmp_path / "bank")},
        space={"bits": levels, "ranks": (0, 4)},
    )  # fmt: skip
    count = len(evaluator.space) - 1
    plan = Plan((*(levels[i % 4] for i in range(count)), 2), (*((4, 0, 4)[i % 3] for i in range(count)), 0))
    evaluator.tune(plan, steps=2, folder=tmp_path / "run")
    done = export(tmp_path / "run", "peft", tmp_path / "out")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(done.path), str(tmp_path / "found")]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stderr
    found = load_file(tmp_path / "found")
    with torch.no_grad():
        expected = load(tmp_path / "run", device="cpu")[0](input_ids=IDS).logits
    assert done.largest_logit_difference == 0 and torch.equal(found["logits"], expected)
    assert found["bytes"] == json.loads((done.path / "plan.json").read_text())["memory_bytes"]
    assert "corrupted" not in said and "newly" not in said, said
