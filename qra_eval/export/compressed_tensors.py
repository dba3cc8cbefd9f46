"""Format `compressed-tensors`: pack-quantized weights with a config group for each bit-width."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from qra_backends.reference import bitpack
from torch import Tensor
from torch.nn import functional as F

from qra_eval.export.grids import IntegerGrid, group_that_divides
from qra_eval.export.packed import PackedExporter
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

LIBRARY = "compressed_tensors"


class CompressedTensorsExporter(PackedExporter):
    """Weights on symmetric grids, packed into 32-bit words; the adapter stays apart, in `adapter/`.

    A symmetric grid has a level at zero and no offset. A layer whose own grid is such a one keeps it; every other is
    rounded a second time, onto the grid of least squared error. Options: see `PackedExporter`.
    """

    name = "compressed-tensors"
    summary = "pack-quantized weights for transformers and vLLM, the adapter beside them"
    pad_ranks = True  # vLLM knows one rank and one scaling
    rounded = "onto symmetric grids"
    adapter = "peft or --lora-modules"

    def tensors(self, run: TunedRun, linear: Chosen, grid: IntegerGrid) -> dict[str, Tensor]:
        return packed_tensors(linear, grid, run.dtype)

    def reload(self, run: TunedRun, out: Path, bits: dict[str, int]) -> tuple[Any, str | None]:
        if importlib.util.find_spec(LIBRARY) is None:
            return None, "not compared: the package compressed-tensors is not installed here"
        narrow = set(bits.values()) - {4, 8, UNQUANTIZED_BITS}
        note = "2 and 3 bits load in transformers; vLLM is known to take 4 and 8 (bits=4,8)" if narrow else None
        return load_compressed(out, run.dtype), note

    def quantization(self, run: TunedRun, bits: dict[str, int]) -> dict[str, Any]:
        groups: dict[tuple[int, int], list[str]] = {}
        for linear in run.linears:
            if bits[linear.name] != UNQUANTIZED_BITS:
                size = group_that_divides(linear.in_features, self.group_size)
                key = (bits[linear.name], 0 if size == linear.in_features else size)
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


def packed_tensors(linear: Chosen, grid: IntegerGrid, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one linear: a row's codes as one stream of bits, in whole 32-bit words."""
    codes = F.pad(grid.codes, (0, -grid.codes.shape[1] % 32))
    words = -(-linear.in_features * grid.bits // 32)
    packed = bitpack.pack(codes, grid.bits).view(torch.int32).view(linear.out_features, -1)[:, :words]
    return {
        f"{linear.name}.weight_packed": packed.contiguous(),
        f"{linear.name}.weight_scale": grid.scale.to(dtype),
        f"{linear.name}.weight_shape": torch.tensor([linear.out_features, linear.in_features]),
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
