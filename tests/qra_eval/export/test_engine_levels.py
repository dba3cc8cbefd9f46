"""A run for each engine: searched, tuned and exported; the export is a copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import Qra
from qra_backends.ggml import library
from safetensors.torch import load_file

from qra_eval.export.tuned import TunedRun
from qra_search.space.memory import UNQUANTIZED_BITS

SMALL = (
    "--model", "tiny", "--task", "arithmetic", "--ranks", "4,8", "--memory", "12bpw", "--granularity", "fused",
    "--set", "evaluation.steps=2", "--set", "training.batch_size=2", "--set", "evaluation.validation_rows=4",
    "--set", "finetune.test_rows=4", "--set", "finetune.steps=2", "--set", "finetune.sample_answers=0",
    "--strategy", "random",
)  # fmt: skip
SERVED = {
    "vllm": "--enable-lora --lora-modules tuned=",
    "llama.cpp": "llama-server -m",
    "transformers": "PeftModel.from_pretrained",
}
"""What the command that serves an export has in it."""


@pytest.fixture(scope="module", params=SERVED)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(engine) / "run"


def test_what_was_searched_for_an_engine_is_tuned_and_exported(
    engine: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if engine == "llama.cpp" and library.missing() is not None:
        pytest.skip(str(library.missing()))
    qra = Qra(capsys)
    searched = qra("search", *SMALL, "--engine", engine, "-n", 3, "--out", folder,
                   "--set", f"quantization.cache={folder.parent / 'bank'}")  # fmt: skip
    assert searched.status == 0, searched.err
    tuned = qra("finetune", folder, "--against", "none")
    assert tuned.status == 0, tuned.err
    exported = qra("export", folder)
    assert exported.status == 0, exported.err
    assert SERVED[engine] in exported.out
    # llama.cpp rounds what products read; of a mapped 16-bit weight its place in memory decides the order of sums.
    if engine == "vllm":
        assert "the same logits as the tuned model's, exactly" in exported.out
        assert "--max-lora-rank 8" in exported.out


def tensors_of(run: TunedRun, out: Path) -> dict[str, dict[str, torch.Tensor]]:
    tensors = load_file(out / "model.safetensors")
    quantized = [linear.name for linear in run.linears if linear.bits != UNQUANTIZED_BITS]
    return {
        name: {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        for name in quantized
    }


@pytest.mark.parametrize("engine", ["vllm"], indirect=True)
def test_the_files_tensors_are_the_plans_in_bytes_and_to_the_bit(engine: str, folder: Path) -> None:
    run, out = TunedRun(folder), folder / "exports" / "compressed-tensors"
    levels = {group["name"]: group["bits"] for group in run.plan["groups"]}
    stored = wanted = 0
    for linear in run.linears:
        own = tensors_of(run, out)[linear.name]
        weight = compressed_by_hand(own, linear.bits)
        assert torch.equal(weight.to(run.dtype), run.weight(linear))
        stored += sum(tensor.nbytes for tensor in own.values())
        wanted += run.backend.storage(levels[linear.group]).bytes(linear.out_features, linear.in_features)
    assert stored == wanted
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(out.resolve())


def bits_of(words: list[int], bits: int) -> list[int]:
    """Codes of one stream of words, by the arithmetic of integers."""
    stream = sum((word % 2**32) << (32 * i) for i, word in enumerate(words))
    return [(stream >> (bits * i)) % 2**bits for i in range(32 * len(words) // bits)]


def compressed_by_hand(own: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    codes = torch.tensor([bits_of(row, bits) for row in own["weight_packed"].tolist()])
    groups = own["weight_scale"].shape[1]
    zeros = (
        torch.tensor([bits_of(column, bits) for column in own["weight_zero_point"].t().tolist()]).t()
        if "weight_zero_point" in own
        else torch.full((len(codes), groups), 2 ** (bits - 1))
    )
    size = codes.shape[1] // groups
    return own["weight_scale"].double().repeat_interleave(size, 1) * (codes - zeros.repeat_interleave(size, 1))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--engine", "vllm", "--granularity", "module"), "so choose fused or layer"),
        (("--engine", "vllm", "--bits", "3,4"), "space.bits has 3: engine vllm has 4, 8, and 16 for unquantized"),
        (("--engine", "vllm", "--ranks", "8,1024"), "engine vllm takes at most 512"),
        (("--engine", "vllm", "--set", "quantization.embeddings=4"), "engine vllm has 16 for unquantized"),
        (("--engine", "gptqmodel"), "engine is 'gptqmodel': known are llama.cpp, transformers, vllm"),
    ],
)
def test_what_an_engine_cannot_take_is_refused_before_a_model_is_loaded(
    arguments: tuple[str, ...], said: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Qra(capsys)("search", "--model", "tiny", "--task", "arithmetic", *arguments, "--out", tmp_path / "run")
    assert shown.status == 2 and said in shown.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_an_adapter_on_a_base_without_an_address_says_who_knows_it(folder: Path) -> None:
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert "qra_eval.load" in config["base_model_name_or_path"]
    assert "qra_eval.load" in (folder / "adapter" / "README.md").read_text()
