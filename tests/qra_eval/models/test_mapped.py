"""A mixture of experts is read expert by expert, and computes what transformers' stacked one does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import save_tiny, tiny_config
from transformers import AutoConfig

from qra_eval.models.load import load_model, read_mixture

IDS = torch.arange(4, 40).view(2, 18)


@pytest.fixture
def saved(tmp_path):
    return save_tiny("qwen3_moe", tmp_path, dtype=torch.bfloat16)


def test_end_tokens_and_sampling_of_the_checkpoint_are_kept(saved):
    (saved / "generation_config.json").write_text(
        '{"eos_token_id": [0, 1], "do_sample": true, "temperature": 0.6}'
    )
    mixture = read_mixture(saved, AutoConfig.from_pretrained(saved), torch.bfloat16)
    assert mixture.generation_config.eos_token_id == [0, 1] and mixture.generation_config.temperature == 0.6


def test_weights_in_several_files_are_found_by_the_index(saved):
    tensors = load_file(saved / "model.safetensors")
    names, index = sorted(tensors), {}
    for part, some in enumerate((names[::2], names[1::2])):
        save_file(
            {name: tensors[name] for name in some},
            saved / f"part-{part}.safetensors",
            metadata={"format": "pt"},
        )
        index |= dict.fromkeys(some, f"part-{part}.safetensors")
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    apart = read_mixture(saved, AutoConfig.from_pretrained(saved), torch.bfloat16)
    for name, parameter in apart.named_parameters():
        assert torch.equal(parameter, tensors[name])


def test_of_files_with_other_names_the_stacked_model_is_taken_apart_and_has_the_same_fingerprint(saved):
    usual = load_model(str(saved))
    tensors = load_file(saved / "model.safetensors")
    expert = next(name for name in tensors if ".experts.0.up_proj" in name)
    weight = tensors.pop(expert)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    assert read_mixture(saved, AutoConfig.from_pretrained(saved), torch.bfloat16) is None
    save_file({**tensors, expert: weight}, saved / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(saved)).fingerprint == usual.fingerprint


def test_a_dense_model_is_left_to_transformers(tmp_path):
    assert read_mixture(tmp_path, tiny_config("llama"), torch.bfloat16) is None
