"""Format `compressed-tensors`: pack-quantized weights with a config group for each bit-width."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from qra_backends.integers.linear import CompressedIntegers

from qra_eval.export.copied import IntegerExporter
from qra_eval.export.merged import load_plain
from qra_eval.export.tuned import TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER
from qra_search.engines import FUSED

LIBRARY = "compressed_tensors"


class CompressedTensorsExporter(IntegerExporter):
    """Layers of the backend compressed-tensors, for vLLM and transformers.

    What vLLM runs as one matrix (q, k and v; gate and up) must have one bit-width. It knows one rank and one scaling,
    so the adapter is written at the largest.
    """

    name = "compressed-tensors"
    summary = "pack-quantized weights for vLLM and transformers, the adapter beside them"
    engine = "vllm"
    layer = CompressedIntegers
    pad_ranks = True

    def check(self, run: TunedRun) -> list[str]:
        reasons, uneven = super().check(run), uneven_shards(run)
        if uneven:
            reasons.append(
                f"{len(uneven)} fused matrices have shards of different bits, such as {uneven[0]}, which vLLM cannot "
                "load: search with --engine vllm, which chooses for the shards together"
            )
        return reasons

    def quantization(self, run: TunedRun) -> dict[str, Any]:
        groups: dict[tuple[int, int, bool], list[str]] = {}
        for name, (bits, size) in self.sizes(run).items():
            module: Any = run.module(name)
            whole_row = size == module.in_features
            symmetric = "weight_zero_point" not in module.tensors()
            groups.setdefault((bits, 0 if whole_row else size, symmetric), []).append(name)
        quantized = {name for names in groups.values() for name in names}
        linears = (name for name, module in run.base.named_modules() if isinstance(module, torch.nn.Linear))
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": [name for name in linears if name not in quantized],
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

    def reload(self, run: TunedRun, out: Path) -> tuple[Any, str]:
        """As transformers loads it, if it can.

        Not with `CompressedTensorsConfig(dequantize=True)`: transformers 5.24 then takes the first config group for
        every layer, and reads those of other widths wrongly.
        """
        if importlib.util.find_spec(LIBRARY) is None:
            return self.unpacked(run, out), "compared by unpacking the written file in this process"
        from peft import PeftModel

        model: Any = load_plain(out, run.dtype)
        model(input_ids=torch.tensor([[0]]))  # decompresses: peft finds no weights before
        model = PeftModel.from_pretrained(model, str(out / ADAPTER_FOLDER), autocast_adapter_dtype=False)
        return model, "loaded by transformers, which decompresses it at the first pass"


def uneven_shards(run: TunedRun) -> list[str]:
    """The fused matrices whose shards have different bits, each as one text."""
    found: dict[str, dict[str, int]] = {}
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
