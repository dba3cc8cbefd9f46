"""Packed codes to weights in one kernel made by torch.compile: codes are read once, and weights written once."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Decode(nn.Module):
    """Weights of whole groups; bits, size and dtype are constants of the kernel, the number of groups is not.

    Products of a code (8 bits) and a float16 scale (11 bits) are exact in float32. So it makes no difference that a
    compiler may fuse product and sum: the weights are those of the uncompiled way, bit for bit.
    """

    def __init__(self, bits: int, size: int, dtype: torch.dtype):
        super().__init__()
        self.bits, self.size, self.dtype = bits, size, dtype

    def forward(self, packed: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Weights (groups, size) of packed uint8 (groups · size · bits / 8,); scale and offset: float16 (groups,)."""
        # As many rows as there are scales, of a constant length: the compiler then divides by constants only.
        width = 24 if self.bits == 3 else 8
        packed = packed.view(len(scale), self.size * self.bits // width, width // 8).to(torch.int32)
        word = packed if width == 8 else packed[..., :1] | (packed[..., 1:2] << 8) | (packed[..., 2:] << 16)
        shifts = torch.arange(0, width, self.bits, dtype=torch.int32, device=packed.device)
        codes = ((word >> shifts) & (2**self.bits - 1)).view(len(scale), self.size)
        return (codes.to(torch.float32) * scale[:, None].float() + offset[:, None].float()).to(self.dtype)


@lru_cache(maxsize=32)
def compiled(bits: int, size: int, dtype: torch.dtype) -> Any:
    """The kernel of these constants; it is made at its first call.

    torch compiles a class for eight combinations of constants in a process; others run uncompiled, which it logs.
    """
    return torch.compile(Decode(bits, size, dtype), dynamic=True)


class Fused:
    """The compiled kernels as long as they can be made; the first failure is logged, and ends it."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(
        self, packed: Tensor, scale: Tensor, offset: Tensor, bits: int, size: int, dtype: torch.dtype
    ) -> Tensor | None:
        """What `Decode` gives; None if there is no compiler, or the weight is not several groups of a multiple of 8.

        Nor are 5 and 6 bits, which are for tables whose rows are looked up.

        Args:
            packed: uint8 codes; scale and offset: float16, of any equal shape.
        """
        groups = scale.numel()
        if self.failed or bits in (5, 6) or groups < 2 or size % 8 or groups * size * bits != 8 * len(packed):
            return None
        try:
            with torch.no_grad():
                # `data` is no view, whose base's shape would ask for a kernel of its own.
                return compiled(bits, size, dtype)(packed.data, scale.reshape(-1).data, offset.reshape(-1).data)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, OSError) as error:
            self.failed = True
            log.warning("weights are dequantized step by step, since torch.compile does not work here: %s", error)
            return None


decode_fused = Fused()
"""For the whole process: a compiler that is missing once is missing always."""
