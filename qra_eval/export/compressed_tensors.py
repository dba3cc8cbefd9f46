"""Format `compressed-tensors`: pack-quantized weights with a config group for each bit-width."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from qra_backends.integers.linear import CompressedIntegers
from safetensors.torch import load_file, save_file
from torch import Tensor

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.merged import load_plain
from qra_eval.export.peft import untied, write_adapter, write_config
from qra_eval.export.tuned import Chosen, TunedRun
from qra_search.engines import FUSED
from qra_search.runs.tuning_folder import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

LIBRARY = "compressed_tensors"
WEIGHTS_FILE = "model.safetensors"


class CompressedTensorsExporter(Exporter):
    """A model folder whose searched linears are copies of the plan's own tensors, for vLLM and transformers.

    Nothing is rounded: what is stored in another way is refused. What vLLM runs as one matrix (q, k and v; gate and
    up) must have one bit-width. It knows one rank and one scaling, so the adapter is written at the largest.
    """

    name = "compressed-tensors"
    summary = "pack-quantized weights for vLLM and transformers, the adapter beside them"

    def check(self, run: TunedRun) -> list[str]:
        quantized = [linear.name for linear in run.linears if linear.bits != UNQUANTIZED_BITS]
        others = [name for name in quantized if not isinstance(run.module(name), CompressedIntegers)] + list(run.tables)
        uneven, reasons = uneven_shards(run), []
        if others:
            reasons.append(
                f"{len(others)} weights are stored in another way, such as {others[0]}: search with --engine vllm, or "
                "export as merged"
            )
        if not run.is_plain():
            reasons.append(f"{run.config.model_type} computes with transposed or stacked weights: export as merged")
        if uneven:
            reasons.append(
                f"{len(uneven)} fused matrices have shards of different bits, such as {uneven[0]}, which vLLM cannot "
                "load: search with --engine vllm, which chooses for the shards together"
            )
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        packed = _packed(run)
        state: dict[str, Tensor] = {}
        for linear in run.linears:
            own = packed[linear.name].tensors() if linear.name in packed else {"weight": run.weight(linear)}
            state |= {f"{linear.name}.{key}": value for key, value in own.items()}
        size = sum(tensor.nbytes for module in packed.values() for tensor in module.tensors().values())
        written = tuple(f"{linear.name}." for linear in run.linears)
        for key, value in run.base.state_dict().items():
            if not key.startswith(written) or key.endswith(".bias"):
                state[key] = value
        save_file(untied(state), out / WEIGHTS_FILE, metadata={"format": "pt"})
        write_config(run, out, _quantization(run, packed))
        write_adapter(run, out / ADAPTER_FOLDER, pad_ranks=True, base=out)
        notes = [
            f"{len(packed)} of {len(run.linears)} searched weights are copies of the plan's own: {size} bytes with "
            "their scales",
            f"the adapter is apart, in {out / ADAPTER_FOLDER}: put it on top with peft",
        ]
        if importlib.util.find_spec(LIBRARY) is None:
            notes.append("compared by unpacking the written file in this process")
            return compared(out, notes, run, _unpacked(run, packed, out))
        notes.append("loaded by transformers, which decompresses it at the first pass")
        return compared(out, notes, run, _loaded(run, out))


def _packed(run: TunedRun) -> dict[str, CompressedIntegers]:
    """The quantized linears, by name."""
    found = {linear.name: run.module(linear.name) for linear in run.linears}
    return {name: module for name, module in found.items() if isinstance(module, CompressedIntegers)}


def _quantization(run: TunedRun, packed: dict[str, CompressedIntegers]) -> dict[str, Any]:
    """The `quantization_config` of the folder's config.json."""
    groups: dict[tuple[int, int, bool], list[str]] = {}
    for name, module in packed.items():
        size = 0 if module.group_size == module.in_features else module.group_size
        groups.setdefault((module.bits, size, "weight_zero_point" not in module.tensors()), []).append(name)
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
                    "symmetric": symmetric,
                    "strategy": "group" if size else "channel",
                    "group_size": size or None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((width, size, symmetric), names) in enumerate(sorted(groups.items()))
        },
    }


def _loaded(run: TunedRun, out: Path) -> Any:
    """As transformers and PEFT load it.

    Not with `CompressedTensorsConfig(dequantize=True)`: transformers 5.24 then takes the first config group for every
    layer, and reads those of other widths wrongly.
    """
    from peft import PeftModel

    model: Any = load_plain(out, run.dtype)
    model(input_ids=torch.tensor([[0]]))  # decompresses: peft finds no weights before
    return PeftModel.from_pretrained(model, str(out / ADAPTER_FOLDER), autocast_adapter_dtype=False)


def _unpacked(run: TunedRun, packed: dict[str, CompressedIntegers], out: Path) -> Any:
    """The model of the written file, by this project's own arithmetic."""
    tensors = load_file(out / WEIGHTS_FILE)

    def weight(linear: Chosen) -> Tensor:
        if linear.name not in packed:
            return tensors[f"{linear.name}.weight"]
        module = packed[linear.name]
        own = {key: tensors[f"{linear.name}.{key}"] for key in module.tensors()}
        return module.with_tensors(**own).dequantize()

    return run.with_weights(weight)


def uneven_shards(run: TunedRun) -> list[str]:
    """The fused matrices whose shards have different bits, each as one text."""
    found: dict[str, dict[str, float]] = {}
    for linear in run.linears:
        parent, _, kind = linear.name.rpartition(".")
        for fused, kinds in FUSED:
            if kinds.fullmatch(kind):
                found.setdefault(f"{parent}.{fused}_proj", {})[kind] = linear.bits
    return [
        f"{name} ({', '.join(f'{kind} {bits}' for kind, bits in shards.items())} bits)"
        for name, shards in found.items()
        if len(set(shards.values())) > 1
    ]
