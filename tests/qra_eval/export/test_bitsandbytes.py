"""A run for plain transformers: its export is a copy, which transformers and PEFT load as it was tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.models.tiny import tiny_model
from qra_search.config import make_config
from qra_search.space.plan import Plan


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TunedRun:
    folder = tmp_path_factory.mktemp("transformers")
    tiny = tiny_model()
    tiny.model.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")
    config = make_config({"engine": "transformers", "space": {"ranks": [4]}})
    evaluator = QuantizedLoRAEvaluator(
        str(folder / "model"),
        "arithmetic",
        quantization=config.quantization.model_copy(update={"cache": str(folder / "bank")}),
        space=config.space,
        training={"batch_size": 2, "learning_rate": 2e-2},
        evaluation={"validation_rows": 4},
        finetune={"test_rows": 4},
    )
    groups = len(evaluator.space)
    evaluator.tune(Plan(tuple((4, 16)[i % 2] for i in range(groups)), (4,) * groups), steps=2, folder=folder / "run")
    return TunedRun(folder / "run")


def test_plain_transformers_and_peft_compute_the_tuned_model(run: TunedRun, tmp_path: Any) -> None:
    done = export(run, "bitsandbytes", tmp_path / "out")
    assert done.largest_logit_difference == 0
    for adapter, base in ((done.path / "adapter", done.path), (run.adapter_folder, Path(run.spec))):
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base.resolve())
    tensors = load_file(done.path / "model.safetensors")
    for linear in run.linears:
        module = run.module(linear.name)
        assert tensors[f"{linear.name}.weight"].equal(module.get_parameter("weight").data)
        assert (f"{linear.name}.weight.absmax" in tensors) == (linear.bits == 4)
