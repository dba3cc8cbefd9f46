"""Format `compressed-tensors`: pack-quantized weights with a config group for each bit-width."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from qra_backends.integers.backend import CompressedIntegers
from safetensors.torch import save_file

from qra_eval.export import Exported, Exporter
from qra_eval.export.peft import (
    list_rearranged_issues,
    load_plain,
    select_unsearched,
    write_adapter,
    write_config,
)
from qra_eval.export.tuned import TunedRun, add_adapter
from qra_search.app.tuning_folder import ADAPTER_FOLDER
from qra_search.engines import FUSED, advise_replan
from qra_search.schemas import LevelName


class CompressedTensorsExporter(Exporter):
    """A model folder whose searched linears are copies of the plan's own tensors, for vLLM and transformers.

    Nothing is rounded: what is stored in another way is refused. What vLLM runs as one matrix (q, k and v; gate and
    up) must have one bit-width. It knows one rank and one scaling, so the adapter is written at the largest.
    """

    name = "compressed-tensors"

    def list_issues(self, run: TunedRun) -> list[str]:
        reasons = []
        linears = run.quantized_linears.items()
        others = [name for name, module in linears if not isinstance(module, CompressedIntegers)]
        others += run.tables
        if others:
            reasons.append(
                f"{len(others)} weights are not stored as compressed-tensors, such as {others[0]}: "
                f"{advise_replan('vllm')}"
            )
        reasons += list_rearranged_issues(run)
        uneven = list_uneven_shards(run)
        if uneven:
            reasons.append(
                f"{len(uneven)} fused matrices have shards of different bits, such as {uneven[0]}, which vLLM cannot "
                "load: plan anew by `qra plan --engine vllm`, which chooses for the shards together"
            )
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        packed: dict[str, Any] = run.quantized_linears
        stored: dict[str, torch.Tensor] = {}
        for name, module in packed.items():
            stored |= {f"{name}.{key}": tensor for key, tensor in module.tensors().items()}
        rest = select_unsearched(run, tuple(f"{name}." for name in packed))
        save_file({**rest, **stored}, out / "model.safetensors", metadata={"format": "pt"})
        write_config(run, out, make_quantization_config(run, packed))
        padding = write_adapter(run, out / ADAPTER_FOLDER, one_rank=True)
        notes = (
            f"{len(packed)} of {len(run.levels)} searched weights are copies of the plan's own: "
            f"{sum(tensor.nbytes for tensor in stored.values())} bytes with their scales",
            f"the adapter is in {out / ADAPTER_FOLDER}: load it on top with peft",
            *padding,
        )
        if importlib.util.find_spec("compressed_tensors") is None:
            return Exported(out, (*notes, "not compared: compressed-tensors is not installed"))
        # Not with `CompressedTensorsConfig(dequantize=True)`: transformers 5.24 then takes the first config group for
        # every layer, and reads those of other widths wrongly.
        model = load_plain(out, run.dtype)
        model(input_ids=torch.tensor([[0]]))  # decompresses: peft finds no weights before
        notes = (*notes, "loaded by transformers, which decompresses it at the first pass")
        logits = run.compute_logits(add_adapter(model, out / ADAPTER_FOLDER))
        return Exported(out, notes, **run.compare_logits(logits))


def make_quantization_config(run: TunedRun, packed: dict[str, CompressedIntegers]) -> dict[str, Any]:
    """The `quantization_config` of the folder's config.json."""
    groups: dict[tuple[int, int], list[str]] = {}
    for name, module in packed.items():
        size = 0 if module.group_size == module.in_features else module.group_size
        groups.setdefault((module.bits, size), []).append(name)
    linears = (name for name, module in run.base.named_modules() if isinstance(module, torch.nn.Linear))
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [name for name in linears if name not in packed],
        "config_groups": {
            f"group_{index}": {
                "targets": names,
                "weights": {
                    "num_bits": width,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group" if size else "channel",
                    "group_size": size or None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((width, size), names) in enumerate(sorted(groups.items()))
        },
    }


def list_uneven_shards(run: TunedRun) -> list[str]:
    """The fused matrices whose shards have different bits, each as one text."""
    found: dict[str, dict[str, LevelName]] = {}
    for name, level in run.levels.items():
        parent, _, kind = name.rpartition(".")
        for fused, kinds in FUSED:
            if kinds.fullmatch(kind):
                found.setdefault(f"{parent}.{fused}_proj", {})[kind] = level
    return [
        f"{name} ({', '.join(f'{kind} {level}' for kind, level in shards.items())} bits)"
        for name, shards in found.items()
        if len(set(shards.values())) > 1
    ]
