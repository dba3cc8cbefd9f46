"""What a format cannot hold is said before anything is written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from qra_eval.export import ExportRefused, check, export, formats
from qra_eval.export.tuned import TunedRun


def test_every_format_says_in_a_line_what_it_is():
    assert set(formats()) >= {"peft", "merged", "compressed-tensors", "gptqmodel", "gguf"}
    assert all(text and "\n" not in text for text in formats().values())


def test_uneven_fused_shards_are_refused_with_the_mend_and_nothing_is_written(runs, tmp_path):
    with pytest.raises(ExportRefused, match="granularity: fused") as refused:
        export(runs["uneven"], "compressed-tensors", tmp_path / "out")
    assert "qkv_proj" in str(refused.value) and list(tmp_path.iterdir()) == []


def test_uneven_shards_may_be_stored_at_the_widest_of_them(runs, tmp_path):
    export(runs["uneven"], "compressed-tensors", tmp_path / "out", shards="widen", bits=[2, 3, 4, 8])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    bits = {
        name: group["weights"]["num_bits"] for group in config["config_groups"].values() for name in group["targets"]
    }
    bits |= dict.fromkeys(config["ignore"], 16)
    for layer in range(2):
        shards = [bits[f"model.layers.{layer}.self_attn.{kind}_proj"] for kind in "qkv"]
        assert len(set(shards)) == 1


def test_k_quants_are_refused_for_rows_that_are_no_multiple_of_256(runs):
    reasons = check(runs["llama"], "gguf", k_quants=True)
    assert len(reasons) == 1 and "256" in reasons[0] and "64" in reasons[0]
    assert check(runs["llama"], "gguf") == []


@pytest.mark.parametrize("family, format", [("gpt2", "compressed-tensors"), ("mixtral", "gptqmodel"), ("gpt2", "gguf")])
def test_models_without_plain_linears_are_refused_with_another_format(family, format, runs):
    assert any("merged" in reason for reason in check(runs[family], format))


def test_an_unknown_format_option_or_place_is_one_clear_line(runs, tmp_path):
    with pytest.raises(ValueError, match="did you mean gguf"):
        check(runs["llama"], "ggfu")
    with pytest.raises(ValueError, match="no option 'ranks': it has pad_ranks"):
        check(runs["llama"], "peft", ranks=3)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(ValueError, match="exists already"):
        export(runs["llama"], "peft", tmp_path / "there")
    with pytest.raises(ValueError, match="lacks plan.json"):
        check(tmp_path, "peft")


def test_narrow_widths_are_stored_wider_unless_they_are_asked_for(runs, tmp_path):
    done = export(runs["llama"], "compressed-tensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"] for group in config["config_groups"].values()} == {4}
    assert any("2 bits as 4, 3 bits as 4" in note for note in done.notes)


def test_a_peft_export_is_exact_also_at_one_rank(runs, tmp_path):
    for pad in (False, True):
        done = export(runs["llama"], "peft", tmp_path / str(pad), pad_ranks=pad)
        # Zero rows change how sums are blocked, so that the last bit may differ.
        assert done.largest_logit_difference <= (1e-6 * done.largest_logit if pad else 0)
    tensors = load_file(tmp_path / "True" / "adapter" / "adapter_model.safetensors")
    assert {tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key} == {8}


def test_the_adapter_beside_compressed_tensors_has_the_one_rank_and_scaling_that_vllm_knows(runs, tmp_path):
    export(runs["llama"], "compressed-tensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8 and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["lora_alpha"] / 8 == min(factors.scaling for factors in runs["llama"].factors.values())


def test_bfloat16_rounds_the_merged_weights_and_the_difference_is_told(runs, tmp_path):
    done = export(runs["llama"], "merged", tmp_path / "out")
    assert 0 < done.largest_logit_difference < 0.1 * done.largest_logit
    assert done.same_next_token > 0.8


def test_the_recipe_names_every_linear_with_its_type(runs, tmp_path):
    run: TunedRun = runs["llama"]
    lines = (export(run, "gguf", tmp_path / "gguf").path / "tensor-types.txt").read_text().splitlines()
    assert len(lines) == len(run.linears) and r"blk\.0\.attn_q\.weight=q4_0" in lines


def test_exports_leave_the_global_generator_alone(runs, tmp_path):
    run = runs["llama"]  # tuned at the first call
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    export(run, "peft", tmp_path / "peft")
    assert torch.equal(before, torch.random.get_rng_state())
