"""Format `gptqmodel`: a GPTQ checkpoint whose `dynamic` rules give each linear its bits."""

from __future__ import annotations

import copy
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from qra_backends.reference import bitpack
from safetensors.torch import load_file, save_file
from torch import Tensor

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.compressed_tensors import DEFAULT_WIDTHS, plain_reasons, untied, widths_of
from qra_eval.export.grids import IntegerGrid, group_that_divides, integer_grid
from qra_eval.export.peft import write_adapter
from qra_eval.export.shards import target_bits
from qra_eval.export.tuned import Chosen, TunedRun
from qra_search.errors import DISTRIBUTION
from qra_search.space.memory import UNQUANTIZED_BITS

GROUP_SIZE = 64
MULTIPLE = 32
"""Shapes must be multiples of it: codes are packed along the rows, zero points along the columns, in 32-bit words."""
SCALE_DTYPE = torch.float16


class GPTQModelExporter(Exporter):
    """Codes with a float16 scale and a whole zero point for each group; the adapter stays apart, in `adapter/`.

    Zero points are whole numbers in this format. A layer keeps its own grid where its offsets are whole multiples of
    its scales and these are exact in float16; every other is rounded a second time.

    Args:
        group_size, bits, shards: as of compressed-tensors; uneven fused shards are only noted by default, as GPTQModel
            itself does not fuse them.
        symmetric: one zero point for all, which vLLM's Marlin kernels need; written in GPTQ's first format. Others are
            written in the second, `gptq_v2`: GPTQModel takes zero points that differ in no other.
        merge: add the adapter to the weights before they are rounded.
    """

    name = "gptqmodel"
    summary = "GPTQ checkpoint with `dynamic` bits for GPTQModel, the adapter beside it"

    def __init__(
        self,
        group_size: int = GROUP_SIZE,
        bits: Any = DEFAULT_WIDTHS,
        symmetric: bool = False,
        merge: bool = False,
        shards: str = "ignore",
    ):
        self.group_size, self.symmetric, self.merge, self.shards = int(group_size), symmetric, merge, shards
        self.widths = widths_of(bits)

    @property
    def shift(self) -> int:
        """By how much the stored zero points are lower than the real ones: GPTQ's first format takes one off."""
        return 1 if self.symmetric else 0

    def check(self, run: TunedRun) -> list[str]:
        _, reasons, _ = target_bits(run.linears, self.widths, self.shards)
        reasons += plain_reasons(run)
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

    def write(self, run: TunedRun, out: Path) -> Exported:
        bits, _, notes = target_bits(run.linears, self.widths, self.shards)
        state: dict[str, Tensor] = {}
        kept = quantized = 0
        for linear in run.linears:
            if bits[linear.name] == UNQUANTIZED_BITS:
                state[f"{linear.name}.weight"] = run.merged(linear).to(run.dtype) if self.merge else run.weight(linear)
                continue
            grid = integer_grid(
                run.merged(linear) if self.merge else run.weight(linear),
                bits[linear.name],
                group_that_divides(linear.in_features, self.group_size),
                symmetric=self.symmetric,
                scale_dtype=SCALE_DTYPE,
                own=None if self.merge else run.affine(linear),
            )
            kept, quantized = kept + grid.same, quantized + 1
            state.update({f"{linear.name}.{key}": tensor for key, tensor in gptq_tensors(grid, self.shift).items()})
        written = {linear.name for linear in run.linears}
        for key, value in run.base.state_dict().items():
            if key.rpartition(".")[0] not in written or key.endswith(".bias"):
                state[key] = value
        save_file(untied(run.base, state), out / "model.safetensors", metadata={"format": "pt"})
        config = copy.deepcopy(run.config)
        config.dtype = run.dtype
        config.quantization_config = self._config(run, bits)
        config.save_pretrained(out)
        (out / "quantize_config.json").write_text(json.dumps(config.quantization_config, indent=1) + "\n")
        run.base.generation_config.save_pretrained(out)
        run.tokenizer.save_pretrained(out)
        if not self.merge:
            write_adapter(run, out / "adapter")
            notes.append(f"the adapter is apart, in {out / 'adapter'}: put it on top with peft")
        if kept < quantized:
            notes.append(
                f"{quantized - kept} of {quantized} linears were rounded again, as GPTQ's zero points are whole "
                "numbers "
                "and theirs are not: their weights are not the tuned ones"
            )
        if kept:
            notes.append(f"{kept} of {quantized} linears keep the grid that they have, exactly")
        notes.append("compared by unpacking the written file in this process; GPTQModel.load(path) loads it")
        tensors = load_file(out / "model.safetensors")

        def weight(linear: Chosen) -> Tensor:
            if bits[linear.name] == UNQUANTIZED_BITS:
                return tensors[f"{linear.name}.weight"]
            return gptq_weight(
                {key: tensors[f"{linear.name}.{key}"] for key in GPTQ_KEYS}, bits[linear.name], self.shift
            )

        model = run.with_weights(weight, adapter=not self.merge)
        return compared(out, notes, run, model, rounded=kept < quantized)

    def _config(self, run: TunedRun, bits: dict[str, int]) -> dict[str, Any]:
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
    groups, out_features = tensors["scales"].shape
    in_features = len(tensors["g_idx"])
    columns = tensors["qweight"].t().contiguous().view(torch.uint8).flatten()
    codes = bitpack.unpack(columns, bits, out_features * in_features).view(out_features, in_features)
    packed = tensors["qzeros"].contiguous().view(torch.uint8).flatten()
    zeros = bitpack.unpack(packed, bits, groups * out_features).view(groups, out_features).float() + shift
    group = tensors["g_idx"].long()
    return tensors["scales"].float().t()[:, group] * (codes.float() - zeros.t()[:, group])


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0"
