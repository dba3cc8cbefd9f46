"""Format `gptqmodel`: a GPTQ checkpoint whose `dynamic` rules give each linear its bits."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from qra_backends.reference import bitpack
from safetensors.torch import load_file
from torch import Tensor

from qra_eval.export.base import Exported
from qra_eval.export.grids import IntegerGrid, gptq_parts, group_that_divides
from qra_eval.export.packed import DEFAULT_WIDTHS, GROUP_SIZE, WEIGHTS_FILE, PackedExporter
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
    rounded = "as GPTQ's zero points are whole numbers and theirs are not"
    adapter = "peft"

    def __init__(
        self,
        group_size: int = GROUP_SIZE,
        bits: Any = DEFAULT_WIDTHS,
        symmetric: bool = False,
        merge: bool = False,
        shards: str = "ignore",
    ):
        super().__init__(group_size, bits, merge, shards)
        self.symmetric = symmetric

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
        return {f"{linear.name}.{key}": tensor for key, tensor in gptq_tensors(grid, self.shift).items()}

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
            return gptq_weight(
                {key: tensors[f"{linear.name}.{key}"] for key in GPTQ_KEYS}, bits[linear.name], self.shift
            )

        note = "compared by unpacking the written file in this process; GPTQModel.load(path) loads it"
        return run.with_weights(weight, adapter=not self.merge), note

    def quantization(self, run: TunedRun, bits: dict[str, int]) -> dict[str, Any]:
        dynamic: dict[str, dict[str, Any]] = {}
        widths = [width for width in bits.values() if width != UNQUANTIZED_BITS]
        common = max(set(widths), key=widths.count) if widths else 4
        for linear in run.linears:
            width, size = bits[linear.name], group_that_divides(linear.in_features, self.group_size)
            pattern = f"^{re.escape(linear.name)}$"
            if width == UNQUANTIZED_BITS:
                dynamic[f"-:{pattern}"] = {}
            elif width != common or size != self.group_size:
                dynamic[f"+:{pattern}"] = {
                    "bits": width, "group_size": -1 if size == linear.in_features else size, "sym": self.symmetric
                }  # fmt: skip
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if self.shift else "gptq_v2",
            "bits": common,
            "group_size": self.group_size,
            "sym": self.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "dynamic": dynamic,
            "meta": {"quantizer": [f"qra:{_version()}"]},
        }


GPTQ_KEYS = ("qweight", "qzeros", "scales", "g_idx")


def gptq_tensors(grid: IntegerGrid, shift: int) -> dict[str, Tensor]:
    """GPTQ's four tensors: codes packed along in, zero points less `shift` along out, in little-endian words of 32
    bits.

    Shapes: qweight int32 (in·bits/32, out), qzeros int32 (groups, out·bits/32), scales float16 (groups, out), g_idx
    int32 (in,).
    """
    out_features, in_features = grid.codes.shape
    codes = bitpack.pack(grid.codes, grid.bits).view(torch.int32).view(out_features, -1)
    zeros = bitpack.pack((grid.zero - shift).t().contiguous(), grid.bits).view(torch.int32)
    return {
        "qweight": codes.t().contiguous(),
        "qzeros": zeros.view(grid.zero.shape[1], -1).contiguous(),
        "scales": grid.scale.t().to(SCALE_DTYPE).contiguous(),
        "g_idx": (torch.arange(in_features) // grid.group_size).to(torch.int32),
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
