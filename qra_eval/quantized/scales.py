"""Scales and offsets of a quantized weight's groups, trained along with the adapters, at no bytes.

A scale s and an offset o become s (1 + d) and o + s e. The changes d and e, which begin at 0, are what the optimizer
sees: so one rate serves all linears. What is multiplied by is rounded to what is stored. Formats without offsets have
their scales trained alone.
"""

from __future__ import annotations

import torch
from qra_backends import Backend, Scales, multiply_scaled
from torch import Tensor, nn


class TrainedScales(nn.Module):
    """The scales of a quantized module while they are trained; the module itself is left as it is.

    Args:
        scales: as `Backend.get_scales` gave them.
        keep: hold dequantized weights from the forward to the backward pass.
    """

    def __init__(self, backend: Backend, scales: Scales, *, keep: bool):
        super().__init__()
        self.backend, self.keep = backend, keep
        self.first = scales
        self.scale_change = nn.Parameter(torch.zeros_like(scales.scale, dtype=torch.float32))
        offset = None if scales.offset is None else torch.zeros_like(scales.offset, dtype=torch.float32)
        self.offset_change = None if offset is None else nn.Parameter(offset)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """What `module` makes of x (..., in), with its scales as they are now."""
        dtype = x.dtype  # to hold x itself until the backward pass would undo checkpointing

        def dequantize(scales: Scales) -> Tensor:
            return self.backend.dequantize(
                self.backend.replace_scales(module, self._cast_to_stored(scales))
            ).to(dtype)

        bias = module.bias
        return multiply_scaled(x, self._compute_scales(), dequantize, bias, keep=self.keep)  # type: ignore[arg-type]

    def has_one_scale_per_row(self) -> bool:
        """Whether a row has one scale and no more, so that it may be trained beside the weight: see `compute_ratio`."""
        return self.first.offset is None and self.first.scale.shape[1] == 1

    def compute_ratio(self) -> Tensor:
        """Float32 (out,): what the outputs of the first weight are multiplied by, if `has_one_scale_per_row`."""
        first = self.first.scale.float()
        return torch.where(
            first == 0, 1.0, self._compute_scales().scale / torch.where(first == 0, 1.0, first)
        )[:, 0]

    @torch.no_grad()
    def get_scales(self) -> Scales:
        """Current scales and offsets in their stored dtype."""
        return self._cast_to_stored(self._compute_scales())

    def _compute_scales(self) -> Scales:
        """Float32, rounded as they are stored; gradients pass the rounding."""
        scale, offset = self.first.scale.float(), self.first.offset
        if offset is not None and self.offset_change is not None:
            offset = self._round(offset.float() + scale * self.offset_change)
        return Scales(self._round(scale * (1 + self.scale_change)), offset, self.first.size)

    def _round(self, found: Tensor) -> Tensor:
        return found + (found.to(self.first.scale.dtype).float() - found).detach()

    def _cast_to_stored(self, scales: Scales) -> Scales:
        dtype, offset = self.first.scale.dtype, scales.offset
        return Scales(scales.scale.to(dtype), None if offset is None else offset.to(dtype), scales.size)
