"""The tensors that a weight is stored in: what they are expected to be, and their checks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor, by name."""


def check_tensors(tensors: dict[str, Tensor], expected: Expected, owner: str) -> None:
    """Refuse tensors whose names, shapes or dtypes are not the expected ones.

    Raises:
        ValueError: names what is there and what must be.
    """
    if set(tensors) != set(expected):
        raise ValueError(f"{owner} needs the tensors {sorted(expected)}, got {sorted(tensors)}")
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{owner}: tensor {name} must be {shape} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}; "
                "was it stored with other options?"
            )


def copy_bias(bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> nn.Parameter | None:
    """A frozen copy of a bias (out,), or None."""
    if bias is None:
        return None
    return nn.Parameter(bias.detach().to(device=device, dtype=dtype, copy=True), requires_grad=False)
