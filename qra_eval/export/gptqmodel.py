"""Format `gptqmodel`: a GPTQ checkpoint whose `dynamic` rules give each linear its bits."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from qra_backends.integers import layouts
from qra_backends.integers.linear import GPTQIntegers, IntegerLinear
from safetensors.torch import load_file
from torch import Tensor

from qra_eval.export.base import Exported
from qra_eval.export.grids import IntegerGrid, gptq_parts
from qra_eval.export.packed import GROUP_SIZE, WEIGHTS_FILE, PackedExporter
from qra_eval.export.tuned import Chosen, TunedRun
from qra_search.errors import DISTRIBUTION
from qra_search.space.memory import UNQUANTIZED_BITS

MULTIPLE = 32
"""Shapes must be multiples of it: codes are packed along the rows, zero points along the columns, in 32-bit words."""
SCALE_DTYPE = torch.float16


class GPTQModelExporter(PackedExporter):
    """Codes with a float16 scale and a whole zero point for each group; the adapter stays apart, in `adapter/`.

    Zero points are whole numbers in this format. A layer keeps its own grid where its offsets are whole multiples of
    its scales and these are exact in float16; every other is rounded a second time.

    Args:
        group_size, bits, merge, shards: see `PackedExporter`; uneven fused shards are only noted by default, as
            GPTQModel itself does not fuse them.
        symmetric: one zero point for all, which vLLM's Marlin kernels need; written in GPTQ's first format. Others are
            written in the second, `gptq_v2`: GPTQModel takes zero points that differ in no other.
    """

    name = "gptqmodel"
    summary = "GPTQ checkpoint with `dynamic` bits for GPTQModel, the adapter beside it"
    layer = GPTQIntegers
    rounded = "as GPTQ's zero points are whole numbers and theirs are not"
    adapter = "peft"

    def __init__(
        self,
        group_size: int = GROUP_SIZE,
        bits: Any = None,
        symmetric: bool = False,
        merge: bool = False,
        shards: str = "ignore",
    ):
        super().__init__(group_size, bits, merge, shards)
        self.symmetric = symmetric

    def own(self, run: TunedRun, linear: Chosen, bits: int) -> IntegerLinear | None:
        return None if self.symmetric else super().own(run, linear, bits)  # that is written in the first format

    @property
    def shift(self) -> int:
        """By how much the stored zero points are lower than the real ones: GPTQ's first format takes one off."""
        return 1 if self.symmetric else 0

    def check(self, run: TunedRun) -> list[str]:
        reasons = super().check(run)
        odd = [
            linear
            for linear in run.linears
            if linear.bits != UNQUANTIZED_BITS and (linear.in_features % MULTIPLE or linear.out_features % MULTIPLE)
        ]
        if odd:
            reasons.append(
                f"{len(odd)} linears have a shape that is no multiple of {MULTIPLE}, such as {odd[0].name} "
                f"({odd[0].out_features}, {odd[0].in_features}), which GPTQ cannot pack: leave these at 16 bits, or "
                "export as compressed-tensors"
            )
        return reasons

    def scale_dtype(self, run: TunedRun) -> torch.dtype:
        return SCALE_DTYPE

    def tensors(self, run: TunedRun, linear: Chosen, grid: IntegerGrid) -> dict[str, Tensor]:
        words = layouts.words_of(grid.codes, grid.bits)
        found = layouts.gptq_tensors(words, grid.scale, grid.zero.float(), grid.bits, shift=self.shift)
        return {f"{linear.name}.{key}": tensor for key, tensor in found.items()}

    def write(self, run: TunedRun, out: Path) -> Exported:
        done = super().write(run, out)
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        (out / "quantize_config.json").write_text(json.dumps(config, indent=1) + "\n")
        return done

    def reload(self, run: TunedRun, out: Path, bits: dict[str, int]) -> tuple[Any, str | None]:
        tensors = load_file(out / WEIGHTS_FILE)

        def weight(linear: Chosen) -> Tensor:
            if bits[linear.name] == UNQUANTIZED_BITS:
                return tensors[f"{linear.name}.weight"]
            own = {key: tensors[f"{linear.name}.{key}"] for key in layouts.GPTQ_KEYS}
            return gptq_weight(own, bits[linear.name], self.shift)

        note = "compared by unpacking the written file in this process; GPTQModel.load(path) loads it"
        return run.with_weights(weight, adapter=not self.merge), note

    def quantization(self, run: TunedRun, bits: dict[str, int]) -> dict[str, Any]:
        dynamic: dict[str, dict[str, Any]] = {}
        ways = [
            (width, self.size(run, linear, width))
            for linear in run.linears
            if (width := bits[linear.name]) != UNQUANTIZED_BITS
        ]
        common, group_size = max(ways, key=ways.count, default=(4, self.group_size))
        for linear in run.linears:
            width, size = bits[linear.name], self.size(run, linear, bits[linear.name])
            pattern = f"^{re.escape(linear.name)}$"
            if width == UNQUANTIZED_BITS:
                dynamic[f"-:{pattern}"] = {}
            elif (width, size) != (common, group_size):
                dynamic[f"+:{pattern}"] = {
                    "bits": width, "group_size": -1 if size == linear.in_features else size, "sym": self.symmetric
                }  # fmt: skip
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if self.shift else "gptq_v2",
            "bits": common,
            "group_size": group_size,
            "sym": self.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "dynamic": dynamic,
            "meta": {"quantizer": [f"qra:{_version()}"]},
        }


def gptq_weight(tensors: dict[str, Tensor], bits: int, shift: int) -> Tensor:
    """The weight float32 (out, in) of GPTQ's four tensors."""
    codes, scale, zeros = gptq_parts(tensors, bits, shift)
    group = tensors["g_idx"].long()
    return scale[:, group] * (codes.float() - zeros[:, group])


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0"
