"""A linear layer whose weight is a trellis-coded stream for each input, and how weights are decoded.

By torch's operations, compiled for a CPU, or by one kernel on a GPU: all give the same numbers, bit for bit. A state's
value is a whole number, and so are the sums that turn the inputs back, which float32 holds exactly. Each is multiplied
once by its row's scale, and rounded once to the dtype asked for.

Without gradients no weight is made whole. A product with few inputs rotates these instead, in float32, and reads values
from the streams; one with more decodes a block of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qra_backends import kernels
from qra_backends.modules import DequantizedLinear
from qra_backends.storage import choose_block_rows
from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, apply_hadamard, make_signs, make_value_table

SCALE_DTYPE = torch.float16
Factors = Sequence[tuple[Tensor, Tensor, float]]
BLOCK_WEIGHTS = 1 << 20
"""Weights that a product with many inputs decodes at a time: 2 MiB in 16 bits, about a core's own cache."""


class TrellisLinear(DequantizedLinear):
    """y = x Wᵀ + bias, with W decoded and turned back to the layer's own inputs if gradients are recorded.

    Then the weight is the same whether it is kept dequantized or not, bit for bit. Without gradients, a product with up
    to `few_inputs` differs from it by less than 1e-3 of its norm beyond the rounding of that weight to its dtype.

    Buffers: `codes` uint8 (bytes of a stream, in); `scale` (out, 1), float16 kept as int16.
    """

    few_inputs = 16
    codes: Tensor
    scale: Tensor
    code: TrellisCode
    block: int

    @property
    def group_size(self) -> int:
        """Weights that share a scale: those of a row."""
        return self.in_features

    def scales(self) -> Tensor:
        """Float16 (out,), a view."""
        return self.scale.view(SCALE_DTYPE)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        inputs = x.reshape(-1, self.in_features)
        multiply = self.make_product() if len(inputs) <= self.few_inputs else None
        product = self._multiply_by_blocks(inputs) if multiply is None else multiply(inputs)
        return product.view(*x.shape[:-1], -1)

    def make_forward(
        self, factors: Factors = (), usual: Callable[..., Tensor] | None = None
    ) -> Callable[..., Tensor]:
        """A function that gives what `forward` does, with adapters on it, and makes its product once: as weights and
        adapters are now.

        Args:
            factors: as `make_product` takes them.
            usual: what does the same for many inputs, with gradients, and with other arguments; default: `forward`.
        """
        multiply, usual = self.make_product(factors), usual or self.forward

        def forward(x: Tensor, *args: Any, **options: Any) -> Tensor:
            inputs = x.reshape(-1, self.in_features)
            is_many = len(inputs) > self.few_inputs
            if multiply is None or is_many or args or options or torch.is_grad_enabled():
                return usual(x, *args, **options)
            return multiply(inputs).view(*x.shape[:-1], -1)

        return forward

    def make_product(self, factors: Factors = ()) -> Callable[[Tensor], Tensor] | None:
        """A function of few inputs x (n, in) that gives what the layer does (n, out), as it is now; None if there is
        no compiled one for its device.

        Args:
            factors: A (rank, in), B (out, rank) and scaling of adapters on it, whose products are added.
        """
        if kernels.are_kernels_usable(self.codes.device):
            from qra_backends.trellis.decode_triton import make_product
        elif self.codes.device.type == "cpu":
            from qra_backends.trellis.decode_numba import make_product  # numba takes a second to import
        else:
            return None
        multiply = make_product(self.codes, self.scales(), self.code, self.block, factors)
        bias = self.bias

        def compute_output(x: Tensor) -> Tensor:
            product = multiply(x)
            return (product if bias is None else product.add_(bias)).to(x.dtype)

        return compute_output

    def _multiply_by_blocks(self, inputs: Tensor) -> Tensor:
        """Inputs (n, in) times the weight, of which a block of rows at a time is decoded, on a CPU."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        step = max(1, BLOCK_WEIGHTS // self.in_features) if inputs.device.type == "cpu" else self.out_features
        if step >= self.out_features:
            return F.linear(inputs, self.dequantize(inputs.dtype), bias)
        product = inputs.new_empty(len(inputs), self.out_features)
        for start in range(0, self.out_features, step):
            own = torch.arange(start, min(start + step, self.out_features), device=inputs.device)
            rows = decode(self.codes, self.scales(), own, self.code, self.block, inputs.dtype)
            part = slice(start, start + step)
            product[:, part] = F.linear(inputs, rows, None if bias is None else bias[part])
        return product

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), computed in float32 and rounded once to `dtype`."""
        return decode(self.codes, self.scales(), None, self.code, self.block, dtype or self.dtype)

    def dequantize_rows(self, at: Tensor) -> Tensor:
        return decode(self.codes, self.scales(), at, self.code, self.block, self.dtype)


def decode(
    codes: Tensor, scale: Tensor, at: Tensor | None, code: TrellisCode, block: int, dtype: torch.dtype
) -> Tensor:
    """Rows (n, in) of a weight (out, in), in the quickest way there is on its device.

    Args:
        codes: uint8 (bytes of a stream, in).
        scale: float16 (out,).
        at: int64 (n,), indices of rows; None for all.
        block: inputs that were rotated together.
    """
    unit = VALUE_UNIT / math.sqrt(block)
    if kernels.are_kernels_usable(codes.device):
        from qra_backends.trellis.decode_triton import decode_rows as decode_on_gpu

        return decode_on_gpu(codes, scale, unit, at, code, block, dtype)
    factor = (scale if at is None else scale[at]).float() * unit
    if at is None:
        at = torch.arange(len(factor), device=codes.device)
    if codes.device.type != "cpu":
        return decode_rows(codes, factor, at, code, block, dtype)
    # It takes a second to import.
    from qra_backends.trellis.decode_numba import decode_rows as decode_on_host

    return decode_on_host(codes, factor, at, code, block, dtype)


def decode_rows(
    codes: Tensor, factor: Tensor, at: Tensor, code: TrellisCode, block: int, dtype: torch.dtype
) -> Tensor:
    """Rows (n, in) of a weight by torch's operations, on any device.

    Args:
        factor: float32 (n,), the scale of each row over that of whole numbers.
    """
    in_features = codes.shape[1]
    weight = torch.empty(len(at), in_features, dtype=dtype, device=codes.device)
    sign, step = make_signs(in_features, codes.device), choose_block_rows(in_features, codes.device)
    for start in range(0, len(at), step):
        own = slice(start, start + step)
        whole = apply_hadamard(decode_values(codes, at[own], code).float(), block)
        torch.mul(whole.mul_(factor[own, None]), sign, out=weight[own])
    return weight


def decode_values(codes: Tensor, at: Tensor, code: TrellisCode) -> Tensor:
    """Values int16 (n, in), in `VALUE_UNIT`s, of rows `at` (n,) of the rotated weight, yet without a scale."""
    start, last = code.locate_state(at), len(codes) - 1
    first = start >> 3
    word = codes[first].to(torch.int32)
    for later in (1, 2):  # 7 + 16 bits at most; the bytes that a short stream lacks would be masked
        word.add_(codes[(first + later).clamp_max_(last)], alpha=256**later)
    state = word.bitwise_right_shift_((start & 7)[:, None]).bitwise_and_(2**code.L - 1)
    return make_value_table(code.L, codes.device)[state]
