"""Six bits a weight, four codes in three bytes, with a float32 scale and offset for each row."""

from __future__ import annotations

import torch
from qra_backends import Backend, DequantizedLinear

LEVELS = 2**6 - 1


class Int6Linear(DequantizedLinear):
    """Of `codes` uint8 (out, in * 3/4) and `grid` float32 (out, 2)."""

    def dequantize(self, dtype=None):
        low, middle, high = self.codes.to(torch.int32).unflatten(1, (-1, 3)).unbind(2)
        word = low | middle << 8 | high << 16
        codes = torch.stack([word >> shift & LEVELS for shift in (0, 6, 12, 18)], dim=2).flatten(1)
        scale, offset = self.tensors()["grid"].split(1, dim=1)
        return (codes * scale + offset).to(dtype or self.dtype)


class Int6Backend(Backend):
    """Rows rounded to the nearest of 64 evenly spaced levels."""

    name = "int6"
    bits = (6,)
    layer = Int6Linear

    def __init__(self):
        self.options = {}

    def unsupported_reason(self, bits, out_features, in_features):
        if bits == 6 and in_features % 4:
            return f"int6 packs four weights of a row together, and {in_features} is not a multiple of 4"
        return super().unsupported_reason(bits, out_features, in_features)

    def list_tensor_specs(self, bits, out_features, in_features, dtype=None):
        codes = ((out_features, in_features * 3 // 4), torch.uint8)
        return {"codes": codes, "grid": ((out_features, 2), torch.float32)}

    def encode(self, weight, bits, hessian):
        weight = weight.float()
        low, high = weight.aminmax(dim=1, keepdim=True)
        scale = (high - low) / LEVELS
        codes = ((weight - low) / scale.clamp_min(1e-30)).round().clamp(0, LEVELS).to(torch.int32)
        first, second, third, fourth = codes.unflatten(1, (-1, 4)).unbind(2)
        word = first | second << 6 | third << 12 | fourth << 18
        packed = torch.stack([word >> shift & 255 for shift in (0, 8, 16)], dim=2).flatten(1).to(torch.uint8)
        return {"codes": packed, "grid": torch.cat([scale, low], dim=1)}

    def make_module(self, tensors, bits, **form):
        return Int6Linear(tensors, **form)
