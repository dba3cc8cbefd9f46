"""Half-quadratic quantization (HQQ) by the hqq library, which needs no calibration data, as a backend of qra."""

from __future__ import annotations

import torch
from qra_backends import Backend, DequantizedLinear
from qra_backends.base import explain_missing_library
from qra_backends.storage import ceil_div, find_group_size

SMALLEST_GROUP = 8
"""The library's own limit."""
SCALE_DTYPE = torch.bfloat16
PACKED = {2: 4, 3: 10, 4: 2, 8: 1}
"""Scales whose codes are packed together: at 3 bits into words of 32 bits, of which the last is padded."""


class HQQLinear(DequantizedLinear):
    """The library's packed codes `W_q`, and `scale` and `zero` (groups, 1) of 16 bits."""

    @property
    def constants(self):
        from hqq.core.quantize import Quantizer

        shape, packing = (
            torch.Size((self.out_features, self.in_features)),
            Quantizer.bit_to_packing[self.bits],
        )
        return {
            "shape": shape,
            "axis": 1,
            "packing": packing,
            "view_as_float": False,
            "compute_dtype": self.dtype,
        }

    def dequantize(self, dtype=None):
        from hqq.core.quantize import Quantizer

        stored = self.tensors()
        meta = {
            "nbits": self.bits,
            "group_size": self.group_size,
            "scale": stored["scale"],
            "zero": stored["zero"],
        }
        return Quantizer.dequantize(stored["W_q"], {**meta, **self.constants}).to(dtype or self.dtype)


class HQQBackend(Backend):
    """Codes with a scale and a zero point for every group of a row, by minimizing a p-norm with p < 1.

    Args:
        group_size: most weights of a row that share scale and zero point; the largest of its halves that divides the
            row is used, so that no group crosses rows.
    """

    name = library = "hqq"
    layer = HQQLinear
    bits = (2, 3, 4, 8)

    def __init__(self, *, group_size=64):
        if type(group_size) is not int or group_size < SMALLEST_GROUP or group_size % SMALLEST_GROUP:
            raise ValueError(
                f"option 'group_size' of backend 'hqq' must be a positive multiple of {SMALLEST_GROUP}, got "
                f"{group_size!r}"
            )
        self.group_size = group_size
        self.options = {"group_size": group_size}

    def unavailable_reason(self, levels=None):
        return explain_missing_library("hqq")

    def unsupported_reason(self, bits, out_features, in_features):
        reason = super().unsupported_reason(bits, out_features, in_features)
        if reason is not None:
            return reason
        group = find_group_size(in_features, self.group_size, SMALLEST_GROUP)
        if group is None:
            return f"hqq needs input features that are a multiple of {SMALLEST_GROUP}, got {in_features}"
        groups = out_features * in_features // group
        if bits != 3 and groups % PACKED[bits]:
            return (
                f"hqq at {bits} bits packs {PACKED[bits]} groups together, and a ({out_features}, {in_features}) "
                f"weight has {groups} groups of {group}: use another width or the backend reference"
            )
        return None

    def encode(self, weight, bits, hessian):
        from hqq.core.quantize import BaseQuantizeConfig, Quantizer

        group, _ = self._count_groups(*weight.shape)
        settings = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)["weight_quant_params"]
        # On a CPU, where the library solves in float32 and not in float16.
        codes, meta = Quantizer.quantize(weight.float().cpu(), device="cpu", **settings)
        scale, zero = meta["scale"].to(SCALE_DTYPE), meta["zero"].to(SCALE_DTYPE)
        tensors = {"W_q": codes, "scale": scale, "zero": zero}
        return {name: tensor.to(weight.device) for name, tensor in tensors.items()}

    def describe_tensors(self, bits, out_features, in_features):
        group, groups = self._count_groups(out_features, in_features)
        packed = ((ceil_div(groups, PACKED[bits]), group), torch.int32 if bits == 3 else torch.uint8)
        return {"W_q": packed, "scale": ((groups, 1), SCALE_DTYPE), "zero": ((groups, 1), SCALE_DTYPE)}

    def make_module(self, tensors, bits, **form):
        group, _ = self._count_groups(form["out_features"], form["in_features"])
        return HQQLinear(tensors, bits=bits, group_size=group, **form)

    def _count_groups(self, out_features, in_features):
        """Weights that share a scale, and how many such groups there are."""
        group = find_group_size(in_features, self.group_size, SMALLEST_GROUP) or self.group_size
        return group, out_features * ceil_div(in_features, group)
