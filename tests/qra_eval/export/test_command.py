"""`qra export`, as it is typed: a run for each engine is searched, tuned and exported; the export is a copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_runner import Qra
from qra_backends.ggml import library
from safetensors.torch import load_file

from qra_eval import load
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_search.app.cli.app import run_safely

SMALL = (
    "--model tiny --task arithmetic --ranks 4,8 --memory 12bpw --granularity fused --strategy random "
    "--set evaluation.steps=2 --set training.batch_size=2 --set evaluation.validation_rows=4 "
    "--set finetune.test_rows=4 --set finetune.steps=2 --set finetune.sample_answers=0 --set training.max_length=64"
)
SERVED = {
    "vllm": "--enable-lora --lora-modules tuned=",
    "llama.cpp": "llama-server -m",
    "transformers": "PeftModel.from_pretrained",
}
"""What the command that serves an export has in it."""


@pytest.fixture(scope="module", params=SERVED)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "llama.cpp" and library.get_missing_reason() is not None:
        pytest.skip(str(library.get_missing_reason()))
    return request.param


@pytest.fixture(scope="module")
def folder(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was searched for an engine, and tuned."""
    run = tmp_path_factory.mktemp(engine) / "run"
    bank = ("--set", f"quantization.cache={run.parent / 'bank'}")
    assert (
        run_safely(["search", *SMALL.split(), "--engine", engine, "-n", "3", "--out", str(run), *bank]) == 0
    )
    assert run_safely(["finetune", str(run), "--against", "none"]) == 0
    return run


def test_what_was_searched_for_an_engine_is_exported_for_it(engine: str, folder: Path, qra: Qra) -> None:
    exported = qra("export", folder)
    assert exported.status == 0, exported.err
    assert SERVED[engine] in exported.out
    assert engine != "vllm" or "--max-lora-rank 8" in exported.out


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"], indirect=True)
def test_a_prompt_is_answered_by_the_runs_engine_with_speed_and_memory(
    engine: str, folder: Path, qra: Qra
) -> None:
    """The tiny model is trained on nothing: that both are its greedy answer is what its logits say."""
    asked = qra("generate", folder, "Question: 1 + 1", "--tokens", "6", "--json")
    assert asked.status == 0, asked.err
    assert asked.json["tokens"] == 6 and asked.json["tokens_per_second"] > 0
    shown = qra("generate", folder, "Question: 1 + 1", "--tokens", "6")
    assert shown.out == asked.json["text"] + "\n" and "6 tokens" in shown.err
    model, tokenizer = load(folder)
    ids = tokenizer("Question: 1 + 1", return_tensors="pt")["input_ids"]
    wanted = model.generate(input_ids=ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)[
        0, ids.shape[1] :
    ]
    assert tokenizer.decode(wanted, skip_special_tokens=True) == asked.json["text"]
    assert qra("generate", folder, "x", "--engine", "vllm").status == 2


@pytest.mark.parametrize("engine", ["llama.cpp"], indirect=True)
def test_an_untuned_plan_is_exported_with_the_codes_of_the_bank_and_no_adapter(
    engine: str, folder: Path, qra: Qra, tmp_path: Path
) -> None:
    shown = qra("export", folder, "--untuned", "--out", tmp_path / "out", "--json")
    assert shown.status == 0, shown.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    assert shown.json["same_next_token"] > 0.9 and "searched weights are copies" in " ".join(
        shown.json["notes"]
    )
    refused = qra("export", folder, "--untuned", "--format", "peft", "--out", tmp_path / "peft")
    assert refused.status == 2 and "needs an adapter" in refused.err


ONE_RUN = pytest.mark.parametrize("engine", ["vllm"], indirect=True)


@ONE_RUN
def test_the_difference_of_logits_is_printed_and_json_is_only_json(
    engine: str, folder: Path, qra: Qra, tmp_path: Path
):
    command = ("export", folder, "--format", "peft", "--out")
    assert "the same logits as the tuned model's, exactly" in qra(*command, tmp_path / "text").out
    shown = qra(*command, tmp_path / "json", "--json")
    assert shown.json["path"] == str(tmp_path / "json")
    config = json.loads((tmp_path / "json" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "json").resolve())


@ONE_RUN
@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--format", "gguf"), "--engine llama.cpp"),
        (("--format", "gguf", "--option", "weights"), "takes a name and a value"),
    ],
)
def test_what_cannot_be_exported_is_told_in_the_last_line_with_status_2(arguments, said, engine, folder, qra):
    shown = qra("export", folder, *arguments)
    assert shown.status == 2 and said in shown.err.splitlines()[-1] and "Traceback" not in shown.err


@ONE_RUN
def test_the_files_tensors_are_the_plans_in_bytes_and_to_the_bit(
    engine: str, folder: Path, tmp_path: Path
) -> None:
    run, out = TunedRun(folder), export(folder, "compressed-tensors", tmp_path / "out").path
    tensors, stored, wanted = load_file(out / "model.safetensors"), 0, 0
    for name, level in run.levels.items():
        own = {key: tensors[f"{name}.{key}"] for key in ("weight_packed", "weight_scale", "weight_shape")}
        weight = run.dequantize_weight(name)
        assert torch.equal(compressed_by_hand(own, run.backend.width(level)).to(run.dtype), weight)
        stored += sum(tensor.nbytes for tensor in own.values())
        wanted += run.backend.storage(level).bytes(*weight.shape)
    assert stored == wanted


def bits_of(words: list[int], bits: int) -> list[int]:
    """Codes of one stream of words, by the arithmetic of integers."""
    stream = sum((word % 2**32) << (32 * i) for i, word in enumerate(words))
    return [(stream >> (bits * i)) % 2**bits for i in range(32 * len(words) // bits)]


def compressed_by_hand(own: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    codes = torch.tensor([bits_of(row, bits) for row in own["weight_packed"].tolist()])
    size = codes.shape[1] // own["weight_scale"].shape[1]
    return own["weight_scale"].double().repeat_interleave(size, 1) * (codes - 2 ** (bits - 1))
