"""What a format cannot hold is said before anything is written, and what is written says how exact it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import pretended_gpu
from safetensors.torch import load_file

from qra_eval.export import check, export, formats
from qra_eval.export.tuned import TunedRun
from qra_search.errors import BadInput


def test_every_format_says_in_a_line_what_it_is() -> None:
    assert set(formats()) >= {"peft", "merged", "compressed-tensors", "gguf"}
    assert all(text and "\n" not in text for text in formats().values())


@pytest.mark.parametrize(
    "format, run, engine", [("gguf", "llama-compressed-tensors", "llama.cpp"), ("compressed-tensors", "llama", "vllm")]
)
def test_levels_of_another_engine_are_refused_with_the_engine_to_search_for(
    format: str, run: str, engine: str, runs: Any, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=f"search with --engine {engine}, or export as merged") as refused:
        export(runs[run], format, tmp_path / "out")
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


def test_uneven_fused_shards_are_refused_with_the_mend(runs: Any) -> None:
    (reason,) = check(runs["uneven"], "compressed-tensors")
    assert "qkv_proj" in reason and "--engine vllm" in reason


@pytest.mark.parametrize(
    "family, format", [("gpt2", "compressed-tensors"), ("mixtral", "compressed-tensors"), ("gpt2", "gguf")]
)
def test_models_without_plain_linears_are_refused_with_another_format(family: str, format: str, runs: Any) -> None:
    assert any("merged" in reason for reason in check(runs[family], format))


def test_an_unknown_format_option_or_place_is_one_clear_line(runs: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean gguf"):
        check(runs["llama"], "ggfu")
    with pytest.raises(BadInput, match="no option 'ranks': it has pad_ranks"):
        check(runs["llama"], "peft", ranks=3)
    with pytest.raises(BadInput, match="pad_ranks is true or false, got 'perhaps'"):
        check(runs["llama"], "peft", pad_ranks="perhaps")
    with pytest.raises(BadInput, match="name of a pre-tokenizer, got 3"):
        check(runs["llama"], "gguf", pre=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert export(runs["llama"], "peft", tmp_path / "link").path == tmp_path / "empty"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(BadInput, match="exists already"):
        export(runs["llama"], "peft", tmp_path / "there")
    with pytest.raises(BadInput, match="lacks plan.json"):
        check(tmp_path, "peft")


def test_a_peft_export_is_exact_also_at_one_rank(runs: Any, tmp_path: Path) -> None:
    for pad in (False, True):
        done = export(runs["llama"], "peft", tmp_path / str(pad), pad_ranks=pad)
        # Zero rows change how sums are blocked, so that the last bit may differ.
        assert done.largest_logit_difference <= (1e-6 * done.largest_logit if pad else 0)
        assert f'PeftModel.from_pretrained(base, "{done.path}/adapter"' in done.notes[1]
    tensors = load_file(tmp_path / "True" / "adapter" / "adapter_model.safetensors")
    assert {tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key} == {8}


@pytest.mark.parametrize("format", ["peft", "merged", "gguf"])
def test_beside_a_gpu_exports_work_on_the_host(format: str, runs: Any, tmp_path: Path) -> None:
    with pretended_gpu():
        done = export(TunedRun(runs["llama"].folder), format, tmp_path / format)
    assert done.largest_logit_difference <= (0.02 if format == "merged" else 0) * done.largest_logit  # in bfloat16


def test_the_adapter_beside_compressed_tensors_has_the_one_rank_and_scaling_that_vllm_knows(
    runs: Any, exported: Any
) -> None:
    run, done = runs["llama-compressed-tensors"], exported["llama-compressed-tensors", "compressed-tensors"]
    config = json.loads((done.path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8 and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["lora_alpha"] / 8 == min(factors.scaling for factors in run.factors.values())


def test_bfloat16_rounds_the_merged_weights_and_the_difference_is_told(runs: Any, tmp_path: Path) -> None:
    done = export(runs["llama"], "merged", tmp_path / "out")
    assert 0 < done.largest_logit_difference < 0.1 * done.largest_logit
    assert done.same_next_token > 0.8


def test_exports_leave_the_global_generator_alone(runs: Any, tmp_path: Path) -> None:
    run = runs["llama"]  # tuned at the first call
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    export(run, "peft", tmp_path / "peft")
    assert torch.equal(before, torch.random.get_rng_state())
