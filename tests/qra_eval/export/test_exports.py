"""What a format cannot hold is said before anything is written, and what is written computes what was tuned."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import qra_eval
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun, add_adapter
from qra_eval.tuning import loading
from qra_search.errors import BadInput

Runs = Callable[..., TunedRun]
IDS = torch.arange(40, 64)[None]


@pytest.mark.parametrize(
    ("run", "format", "why"),
    [
        (("llama", "compressed-tensors"), "gguf", "merged, or plan again with `qra plan --engine llama.cpp`"),
        (("llama",), "compressed-tensors", "merged, or plan again with `qra plan --engine vllm`"),
        (("llama", "compressed-tensors", "module"), "compressed-tensors", "qkv_proj.* --engine vllm`"),
        (("gpt2", "reference"), "compressed-tensors", "transposed or stacked weights: export as merged"),
        (("mixtral", "reference"), "compressed-tensors", "transposed or stacked weights: export as merged"),
        (("gpt_neox",), "vllm", "reorders the rows of query_key_value"),
        (("gpt2", "reference"), "gguf", "not one of the model types .*: export as merged"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_mend(
    run: tuple[str, ...], format: str, why: str, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        export(runs(*run), format, tmp_path / "out")
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "options", "why"),
    [
        ("ggfu", {}, "did you mean gguf"),
        ("peft", {"ranks": 3}, "unknown option of format 'peft': 'ranks': there are none"),
        ("gguf", {"pre": 3}, "option 'pre' of format 'gguf' is 3: input should be a valid string"),
        ("merged", {"dtype": "int8"}, "option 'dtype' of format 'merged' is 'int8': input should be"),
    ],
)
def test_an_unknown_format_or_option_is_one_clear_line(
    format: str, options: dict[str, Any], why: str, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=why):
        export(runs("llama"), format, tmp_path / "out", **options)


def test_an_export_is_written_into_an_empty_place_alone(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert export(runs("llama"), "peft", tmp_path / "link").path == tmp_path / "empty"
    with pytest.raises(BadInput, match="already exists"):
        export(runs("llama"), "peft", tmp_path / "empty")
    with pytest.raises(BadInput, match="plan.json does not exist"):
        export(tmp_path, "peft", tmp_path / "out")


@pytest.mark.parametrize(
    "run", [("llama",), ("qwen2",), ("gpt2", "reference"), ("mixtral", "reference")], ids=lambda run: run[0]
)
def test_a_merged_model_computes_the_tuned_models_logits_in_plain_transformers(
    run: tuple[str, ...], runs: Runs, tmp_path: Path
) -> None:
    rounded = export(runs(*run), "merged", tmp_path / "rounded")  # to bfloat16
    assert rounded.largest_logit_difference > 0 and rounded.same_next_token > 0.9
    done = export(runs(*run), "merged", tmp_path / "out", dtype="float32")
    tuned, _ = qra_eval.load(runs(*run).folder, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(done.path, dtype=torch.float32)
    with torch.no_grad():
        mine, theirs = (model(input_ids=IDS, use_cache=False).logits for model in (tuned, plain))
    assert (mine - theirs).abs().max() < 1e-5 * mine.abs().max()
    assert done.largest_logit_difference < 1e-5 * done.largest_logit and done.same_next_token == 1


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_transformers_reads_a_gguf_file_as_the_tuned_base(family: str, runs: Runs, tmp_path: Path) -> None:
    run = runs(family)
    done = export(run, "gguf", tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(done.path, gguf_file="model.gguf", dtype=torch.float32)
    model.hf_quantizer.remove_quantization_config(model)
    logits = run.compute_logits(add_adapter(model, run.adapter_folder))
    assert run.compare_logits(logits)["largest_logit_difference"] == 0


def test_a_peft_export_is_exact_also_at_one_rank(runs: Runs, tmp_path: Path) -> None:
    for format in ("peft", "vllm"):
        done = export(runs("llama"), format, tmp_path / format)
        # Zero rows change how sums are blocked, so that the last bit may differ.
        assert done.largest_logit_difference <= (1e-6 * done.largest_logit if format == "vllm" else 0)
        assert f'PeftModel.from_pretrained(base, "{done.path}/adapter"' in done.notes[1]
    tensors = load_file(tmp_path / "vllm" / "adapter" / "adapter_model.safetensors")
    assert {tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key} == {8}


def test_the_adapter_beside_compressed_tensors_has_the_one_rank_and_scaling_that_vllm_knows(
    runs: Runs, tmp_path: Path
) -> None:
    run = runs("llama", "compressed-tensors")
    done = export(run, "compressed-tensors", tmp_path / "out")
    folders = (done.path / "adapter", run.adapter_folder)
    config, own = (json.loads((folder / "adapter_config.json").read_text()) for folder in folders)
    assert config["r"] == 8 and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["lora_alpha"] == own["lora_alpha"]
    if find_spec("compressed_tensors") is not None:
        assert done.largest_logit_difference <= 1e-5 * done.largest_logit


def test_an_export_loads_the_model_once_and_reads_its_plan_once(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = runs("llama").folder, []
    for name in ("load_model", "read_plan_file"):
        own = getattr(loading, name)

        def count(*args: Any, name: str = name, own: Any = own, **options: Any) -> Any:
            calls.append(name)
            return own(*args, **options)

        monkeypatch.setattr(loading, name, count)
    assert export(folder, "peft", tmp_path / "out").largest_logit_difference == 0
    assert sorted(calls) == ["load_model", "read_plan_file"]
