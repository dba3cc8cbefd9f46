"""Models with code of their own: run with leave alone, which the run's settings tell exports and scores."""

from __future__ import annotations

import json

import pytest
import torch
from evaluators import make_evaluator
from tiny_families import save_tiny

import qra_eval
from qra_eval.export.tuned import TunedRun
from qra_search.app.folder import RunFolder, is_code_trusted

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
CONFIG = "evaluator: quantized-lora\nmodel:\n  name: {model}\n  trust_remote_code: {trust}\n"


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_tiny("llama", tmp_path / "mine", dtype=torch.bfloat16)
    (folder / "modeling_mine.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {
        "AutoConfig": "modeling_mine.MineConfig",
        "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
    }
    config |= {"auto_map": names, "architectures": ["MineForCausalLM"], "model_type": "mine"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_what_was_tuned_with_leave_loads_and_exports_with_it_alone(model, tmp_path):
    evaluator = make_evaluator(
        model,
        quantization={"backend": "reference", "cache": str(tmp_path / "bank")},
        space={"bits": (4,), "ranks": (4,), "granularity": "layer"},
        training={"batch_size": 2, "max_length": 64},
        finetune={"test_rows": 2, "steps": 1, "sample_answers": 0},
        trust_remote_code=True,
    )
    run = tmp_path / "run"
    evaluator.tune(evaluator.space.uniform(4, 4), folder=run)
    with pytest.raises(ValueError, match="pass trust_remote_code"):
        qra_eval.load(run)
    loaded, _ = qra_eval.load(run, device="cpu", trust_remote_code=True)
    assert type(loaded.get_base_model()).__name__ == "MineForCausalLM"
    RunFolder(run).config_file.write_text(CONFIG.format(model=model, trust="false"))
    with pytest.raises(ValueError, match="pass trust_remote_code"):
        TunedRun(run)
    RunFolder(run).config_file.write_text(CONFIG.format(model=model, trust="true"))
    exported = TunedRun(run)
    assert exported.trusted and exported.is_plain()
    assert len(exported.levels) == len(evaluator.quantized_model.linears)


def test_a_tuning_has_the_settings_of_its_run(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.format(model="tiny", trust="true"))
    assert is_code_trusted(tmp_path) and is_code_trusted(tmp_path / "tunings" / "1a")
    assert not is_code_trusted(tmp_path / "other" / "1a")
