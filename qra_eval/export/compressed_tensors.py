"""Format `compressed-tensors`: pack-quantized weights with a config group for each bit-width."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from qra_backends.reference import bitpack
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.grids import IntegerGrid, group_that_divides, integer_grid
from qra_eval.export.peft import write_adapter
from qra_eval.export.shards import target_bits
from qra_eval.export.tuned import Chosen, TunedRun
from qra_search.space.memory import UNQUANTIZED_BITS

WIDTHS = bitpack.WIDTHS
DEFAULT_WIDTHS = (4, 8)
"""What every engine takes. Rounded a second time at 2 or 3 bits, SmolLM2 finds another likeliest token everywhere."""
GROUP_SIZE = 64
LIBRARY = "compressed_tensors"


class CompressedTensorsExporter(Exporter):
    """Weights on symmetric grids, packed into 32-bit words; the adapter stays apart, in `adapter/`.

    A symmetric grid has a level at zero and no offset. A layer whose own grid is such a one keeps it; every other is
    rounded a second time, onto the grid of least squared error.

    Args:
        group_size: weights of a row that share a scale; halved for a linear whose row it does not divide.
        bits: widths that may be written, as a list or as text ("2,3,4,8", or "8" to lose next to nothing). A linear
            of another width takes the next wider one.
        merge: add the adapter to the weights before they are rounded, instead of writing it beside them. At 2 to 4 bits
            this loses much of it.
        shards: `refuse` plans that engines which fuse q, k, v and gate, up cannot load, `widen` the narrower ones, or
            `ignore` it, for transformers only.
    """

    name = "compressed-tensors"
    summary = "pack-quantized weights for transformers and vLLM, the adapter beside them"

    def __init__(
        self,
        group_size: int = GROUP_SIZE,
        bits: Any = DEFAULT_WIDTHS,
        merge: bool = False,
        shards: str = "refuse",
    ):
        self.group_size, self.merge, self.shards = int(group_size), merge, shards
        self.widths = widths_of(bits)

    def check(self, run: TunedRun) -> list[str]:
        _, reasons, _ = target_bits(run.linears, self.widths, self.shards)
        return reasons + plain_reasons(run)

    def write(self, run: TunedRun, out: Path) -> Exported:
        bits, _, notes = target_bits(run.linears, self.widths, self.shards)
        quantized = sum(width != UNQUANTIZED_BITS for width in bits.values())
        state, kept = {}, 0
        for linear in run.linears:
            width = bits[linear.name]
            if width == UNQUANTIZED_BITS:
                state[f"{linear.name}.weight"] = run.merged(linear).to(run.dtype) if self.merge else run.weight(linear)
                continue
            grid = self._grid(run, linear, width)
            kept += grid.same
            state.update(packed_tensors(linear, grid, run.dtype))
        written = {linear.name for linear in run.linears}
        for key, value in run.base.state_dict().items():
            if key.rpartition(".")[0] not in written or key.endswith(".bias"):
                state[key] = value
        save_file(untied(run.base, state), out / "model.safetensors", metadata={"format": "pt"})
        config = copy.deepcopy(run.config)
        config.dtype = run.dtype
        config.quantization_config = self._config(run, bits)
        config.save_pretrained(out)
        run.tokenizer.save_pretrained(out)
        run.base.generation_config.save_pretrained(out)
        if not self.merge:
            write_adapter(run, out / "adapter", pad_ranks=True)  # vLLM knows one rank and one scaling
        notes += self._notes(run, bits, kept, out)
        if importlib.util.find_spec(LIBRARY) is None:
            notes.append("not compared: the package compressed-tensors is not installed here")
            return Exported(out, tuple(notes))
        return compared(out, notes, run, load_compressed(out, run.dtype), rounded=kept < quantized)

    def _grid(self, run: TunedRun, linear: Chosen, bits: int) -> IntegerGrid:
        return integer_grid(
            run.merged(linear) if self.merge else run.weight(linear),
            bits,
            group_that_divides(linear.in_features, self.group_size),
            symmetric=True,
            scale_dtype=run.dtype,
            own=None if self.merge else run.affine(linear),
        )

    def _config(self, run: TunedRun, bits: dict[str, int]) -> dict[str, Any]:
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

    def _notes(self, run: TunedRun, bits: dict[str, int], kept: int, out: Path) -> list[str]:
        quantized = sum(width != UNQUANTIZED_BITS for width in bits.values())
        notes = []
        if kept < quantized:
            notes.append(
                f"{quantized - kept} of {quantized} linears were rounded again, onto symmetric grids: "
                "their weights are not the tuned ones"
            )
        if kept:
            notes.append(f"{kept} of {quantized} linears keep the grid that they have, exactly")
        if not self.merge:
            notes.append(f"the adapter is apart, in {out / 'adapter'}: put it on top with peft or --lora-modules")
        if set(bits.values()) - {4, 8, UNQUANTIZED_BITS}:
            notes.append("2 and 3 bits load in transformers; vLLM is known to take 4 and 8 (bits=4,8)")
        return notes


def widths_of(bits: Any) -> tuple[int, ...]:
    """Widths from a list, a number, or text with commas.

    Raises:
        ValueError: one is not of 2, 3, 4, 8.
    """
    parts = bits.split(",") if isinstance(bits, str) else [bits] if isinstance(bits, int) else bits
    try:
        widths = tuple(sorted({int(part) for part in parts}))
    except (TypeError, ValueError):
        widths = ()
    if not widths or not set(widths) <= set(WIDTHS):
        raise ValueError(f"bits must be some of {', '.join(map(str, WIDTHS))}, got {bits!r}")
    return widths


def plain_reasons(run: TunedRun) -> list[str]:
    """Why quantized linears would not be found by plain transformers."""
    if run.is_plain():
        return []
    return [
        f"{run.config.model_type} computes with transposed or stacked weights, not with linears that could be stored "
        "one by one: export as merged instead"
    ]


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


def untied(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state for safetensors: of tensors that share memory the first one only, all contiguous."""
    seen: set[int] = set()
    kept = {}
    for key, value in state.items():
        if value.numel() and value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())
        kept[key] = value.detach().contiguous()
    return kept


def load_compressed(folder: Path, dtype: torch.dtype) -> Any:
    """The export as transformers loads it, with the adapter on top where there is one.

    Not with `CompressedTensorsConfig(dequantize=True)`: transformers 5.24 then takes the first config group for every
    layer, and reads those of other widths wrongly.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model(input_ids=torch.tensor([[0]]))  # decompresses: peft finds no weights before
    if not (folder / "adapter").is_dir():
        return model
    return PeftModel.from_pretrained(model, str(folder / "adapter"), autocast_adapter_dtype=False)
