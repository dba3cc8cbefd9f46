"""Format `compressed-tensors`: pack-quantized weights with a config group for each bit-width."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from qra_backends.integers import layouts
from qra_backends.integers.linear import CompressedIntegers
from safetensors.torch import load_file
from torch import Tensor

from qra_eval.export.grids import IntegerGrid
from qra_eval.export.packed import WEIGHTS_FILE, PackedExporter
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

LIBRARY = "compressed_tensors"


class CompressedTensorsExporter(PackedExporter):
    """Weights packed into 32-bit words; the adapter stays apart, in `adapter/`.

    Layers of the backend compressed-tensors are copied. Others are written on symmetric grids, which have a level at
    zero and no offset: a layer whose own grid is such a one keeps it, every other is rounded a second time, onto the
    grid of least squared error. Options: see `PackedExporter`.
    """

    layer = CompressedIntegers
    name = "compressed-tensors"
    summary = "pack-quantized weights for transformers and vLLM, the adapter beside them"
    pad_ranks = True  # vLLM knows one rank and one scaling
    rounded = "onto symmetric grids"
    adapter = "peft or --lora-modules"

    def tensors(self, run: TunedRun, linear: Chosen, grid: IntegerGrid) -> dict[str, Tensor]:
        words = layouts.words_of(grid.codes, grid.bits)
        found = layouts.compressed_tensors(words, grid.scale.to(run.dtype), None, grid.bits, linear.in_features)
        return {f"{linear.name}.{key}": tensor for key, tensor in found.items()}

    def reload(self, run: TunedRun, out: Path, bits: dict[str, int]) -> tuple[Any, str | None]:
        if importlib.util.find_spec(LIBRARY) is None:
            return self._unpacked(run, out, bits), "compared by unpacking the written file in this process"
        narrow = set(bits.values()) - {4, 8, UNQUANTIZED_BITS}
        note = "2 and 3 bits load in transformers; vLLM is known to take 4 and 8 (bits=4,8)" if narrow else None
        return load_compressed(out, run.dtype), note

    def _unpacked(self, run: TunedRun, out: Path, bits: dict[str, int]) -> Any:
        """The written file by this project's own arithmetic."""
        tensors = load_file(out / WEIGHTS_FILE)

        def weight(linear: Chosen) -> Tensor:
            width, prefix = bits[linear.name], f"{linear.name}."
            if width == UNQUANTIZED_BITS:
                return tensors[f"{prefix}weight"]
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            own.pop("bias", None)
            shape = {"out_features": linear.out_features, "in_features": linear.in_features}
            size = self.size(run, linear, width)
            return CompressedIntegers(
                own, bits=width, group_size=size, **shape, bias=None, dtype=run.dtype
            ).dequantize()

        return run.with_weights(weight, adapter=not self.merge)

    def quantization(self, run: TunedRun, bits: dict[str, int]) -> dict[str, Any]:
        groups: dict[tuple[int, int, bool], list[str]] = {}
        for linear in run.linears:
            width = bits[linear.name]
            if width != UNQUANTIZED_BITS:
                size, own = self.size(run, linear, width), self.own(run, linear, width)
                symmetric = own is None or "weight_zero_point" not in own.tensors()
                key = (width, 0 if size == linear.in_features else size, symmetric)
                groups.setdefault(key, []).append(linear.name)
        quantized = {name for names in groups.values() for name in names}
        others = [
            name
            for name, module in run.base.named_modules()
            if isinstance(module, torch.nn.Linear) and name not in quantized
        ]
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": others,
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


def load_compressed(folder: Path, dtype: torch.dtype) -> Any:
    """The export as transformers loads it, with the adapter on top where there is one.

    Not with `CompressedTensorsConfig(dequantize=True)`: transformers 5.24 then takes the first config group for every
    layer, and reads those of other widths wrongly.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model(input_ids=torch.tensor([[0]]))  # decompresses: peft finds no weights before
    if not (folder / ADAPTER_FOLDER).is_dir():
        return model
    return PeftModel.from_pretrained(model, str(folder / ADAPTER_FOLDER), autocast_adapter_dtype=False)
