"""The bits of a plan as other tools take them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
import yaml
from transformers import AutoModelForCausalLM

from qra_eval.export import export
from qra_eval.export.recipe import EXLLAMA_BITS, LLAMA_CPP_TYPES, round_up
from qra_eval.export.tuned import TunedRun

Runs = Callable[..., TunedRun]


def test_a_recipe_names_every_tensor_as_the_other_tools_do(runs: Runs, tmp_path: Path) -> None:
    run = runs("llama")
    out, model = export(run, "recipe", tmp_path / "out").path, export(run, "gguf", tmp_path / "gguf").path
    tensors = {t.name: t.tensor_type.name for t in gguf.GGUFReader(model / "model.gguf").tensors}
    lines = [line.split("=") for line in (out / "tensor-types.txt").read_text().split()]
    matches = {name: kind for pattern, kind in lines for name in tensors if re.search(pattern, name)}
    assert len(matches) == len(lines) == len(run.levels) + len(run.tables)
    assert {"Q4_0", "Q8_0", "BF16"} == set(matches.values())
    assert all(tensors[name] == ("F32" if kind == "BF16" else kind) for name, kind in matches.items())
    plain = AutoModelForCausalLM.from_config(run.config)
    wanted = {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    recipe = yaml.safe_load((out / "exllamav3.yaml").read_text())
    layers = json.loads((out / "layer_config.json").read_text())
    assert set(recipe["tensors"]) == set(layers) == wanted
    for name, level in run.levels.items():
        bits = {"Q4_0": 4, "Q8_0": 8, 16: 16}[level]
        assert recipe["tensors"][name] == layers[name]["bits"] == bits and type(bits) is int


def test_a_recipe_rounds_half_bits_up_where_a_tool_has_none() -> None:
    assert [round_up(width, tuple(LLAMA_CPP_TYPES)) for width in (1, 1.5, 2.5, 3, 7)] == [1.5, 1.5, 3, 3, 8]
    assert [round_up(width, EXLLAMA_BITS) for width in (1, 1.5, 2.5, 4.5)] == [1, 1.5, 2.5, 5]
