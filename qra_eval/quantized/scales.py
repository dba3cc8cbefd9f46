"""Scales and offsets of a quantized weight's groups, trained along with the adapters, at no bytes.

A scale s and an offset o become s (1 + d) and o + s e. The changes d and e, which begin at 0, are what the optimizer
sees: so one rate serves all linears. What is multiplied by is rounded to what is stored. Formats without offsets have
their scales trained alone.
"""

from __future__ import annotations

import torch
from qra_backends import Backend, Groups, apply_grouped
from torch import Tensor, nn


class TrainedGroups(nn.Module):
    """The groups of a quantized module while they are trained; the module itself is left as it is.

    Args:
        groups: as `Backend.get_trainable_groups` gave them.
        keep: hold dequantized weights from the forward to the backward pass.
    """

    def __init__(self, backend: Backend, groups: Groups, *, keep: bool):
        super().__init__()
        self.backend, self.keep = backend, keep
        self.first = groups
        self.scale_change = nn.Parameter(torch.zeros_like(groups.scale, dtype=torch.float32))
        offset = None if groups.offset is None else torch.zeros_like(groups.offset, dtype=torch.float32)
        self.offset_change = None if offset is None else nn.Parameter(offset)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """What `module` makes of x (..., in), with its groups as they are now."""
        dtype = x.dtype  # to hold x itself until the backward pass would undo checkpointing

        def dequantize(groups: Groups) -> Tensor:
            return self.backend.dequantize(
                self.backend.replace_groups(module, self._cast_to_stored(groups))
            ).to(dtype)

        bias = module.bias
        return apply_grouped(x, self._compute_groups(), dequantize, bias, keep=self.keep)  # type: ignore[arg-type]

    def has_row_scales(self) -> bool:
        """Whether a row has one scale and no more, so that it may be trained beside the weight: see `compute_ratio`."""
        return self.first.offset is None and self.first.scale.shape[1] == 1

    def compute_ratio(self) -> Tensor:
        """Float32 (out,): what the outputs of the module's first weight are multiplied by, if `has_row_scales`."""
        first = self.first.scale.float()
        return torch.where(
            first == 0, 1.0, self._compute_groups().scale / torch.where(first == 0, 1.0, first)
        )[:, 0]

    @torch.no_grad()
    def get_groups(self) -> Groups:
        """Current scales and offsets in their stored dtype."""
        return self._cast_to_stored(self._compute_groups())

    def _compute_groups(self) -> Groups:
        """Float32, rounded as they are stored; gradients pass the rounding."""
        scale, offset = self.first.scale.float(), self.first.offset
        if offset is not None and self.offset_change is not None:
            offset = self._round(offset.float() + scale * self.offset_change)
        return Groups(self._round(scale * (1 + self.scale_change)), offset, self.first.size)

    def _round(self, found: Tensor) -> Tensor:
        return found + (found.to(self.first.scale.dtype).float() - found).detach()

    def _cast_to_stored(self, groups: Groups) -> Groups:
        dtype, offset = self.first.scale.dtype, groups.offset
        return Groups(groups.scale.to(dtype), None if offset is None else offset.to(dtype), groups.size)
