"""A linear layer whose weight is codes less a whole zero point, times a scale: an engine's tensors as they are."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from qra_backends.integers import layouts
from qra_backends.kernels.choice import Zeros, decoder
from qra_backends.modules import DequantizedLinear
from qra_backends.reference import bitpack
from qra_backends.reference.packed import decode_packed

_STORAGE = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Integers that floats are kept as: module.to(dtype) would round floats."""


class IntegerLinear(DequantizedLinear):
    """y = x Wᵀ + bias with W[o, i] = scale[o, g] · (code[o, i] - zero[o, g]), g = i // group_size.

    Buffers: the tensors of the engine, by their names in its files; `float_name` is the one of floats, which has groups
    as rows if they come first, as `codes_name`, the one of codes, then has words.
    """

    codes_name: str
    float_name: str
    groups_first = False

    def __init__(
        self,
        tensors: dict[str, Tensor],
        *,
        bits: int,
        group_size: int,
        out_features: int,
        in_features: int,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ):
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.bits, self.group_size = bits, group_size
        self.float_dtype = tensors[self.float_name].dtype
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.view(_STORAGE[tensor.dtype]) if name == self.float_name else tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Those that the layer was made of."""
        return {
            name: tensor.view(self.float_dtype) if name == self.float_name else tensor
            for name, tensor in self._buffers.items()
            if tensor is not None
        }

    def scaled(self, scale: Tensor) -> IntegerLinear:
        """A layer with other scales, float32 (out, groups), that shares all else."""
        stored = self.tensors()[self.float_name]
        laid_out = scale.to(stored.dtype).t() if self.groups_first else scale.to(stored.dtype)
        return type(self)(
            {**self.tensors(), self.float_name: laid_out.contiguous()},
            bits=self.bits,
            group_size=self.group_size,
            out_features=self.out_features,
            in_features=self.in_features,
            bias=self.bias,
            dtype=self.dtype,
        )

    @abstractmethod
    def stream(self) -> Tensor:
        """The codes as one stream of bytes, row after row."""

    @abstractmethod
    def zeros(self) -> Tensor:
        """Zero points float32 (out, groups)."""

    @abstractmethod
    def zero_words(self) -> Zeros:
        """Zero points as they are stored."""

    @abstractmethod
    def scale(self) -> Tensor:
        """Scales float32 (out, groups)."""

    def codes(self) -> Tensor:
        """uint8 (out, in)."""
        count = self.out_features * self.in_features
        return bitpack.unpack(self.stream(), self.bits, count).view(self.out_features, self.in_features)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in): a scale has 8 bits and a step 9, so the product is exact in float32; rounded once."""
        form = (self.bits, self.group_size, (self.out_features, self.in_features), dtype or self.dtype)
        tensors = self.tensors()
        stored = tensors[self.float_name]
        kernel = decoder(stored.device)
        if kernel is not None:
            words = tensors[self.codes_name]
            return kernel(words, stored, None, *form, zeros=self.zero_words(), columns_first=self.groups_first)
        scale = self.scale()
        offset = (self.zeros() * scale).neg_()
        return decode_packed(self.stream(), scale, offset, *form)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}"


class GPTQIntegers(IntegerLinear):
    """In GPTQ's second format."""

    codes_name, float_name = "qweight", "scales"
    joined_along = {"qweight": 1, "qzeros": 1, "scales": 1, "g_idx": None}
    groups_first = True

    def stream(self) -> Tensor:
        return layouts.gptq_stream(self.tensors())

    def zeros(self) -> Tensor:
        return layouts.gptq_zeros(self.tensors(), self.bits)

    def zero_words(self) -> Zeros:
        return Zeros(self.qzeros, 4, 4 * self.qzeros.shape[1])

    def scale(self) -> Tensor:
        return self.tensors()["scales"].t().to(torch.float32).contiguous()


class CompressedIntegers(IntegerLinear):
    """In compressed-tensors' `pack-quantized` form; without weight_zero_point, it is 2^(bits - 1) everywhere."""

    codes_name, float_name = "weight_packed", "weight_scale"
    joined_along = {"weight_packed": 0, "weight_scale": 0, "weight_zero_point": 0, "weight_shape": None}

    def stream(self) -> Tensor:
        return self.tensors()["weight_packed"].view(torch.uint8).flatten()

    def zeros(self) -> Tensor:
        tensors = self.tensors()
        if "weight_zero_point" not in tensors:
            return torch.full(tensors["weight_scale"].shape, 2.0 ** (self.bits - 1), device=self.weight_packed.device)
        return layouts.compressed_zeros(tensors["weight_zero_point"], self.bits, self.out_features)

    def zero_words(self) -> Zeros:
        words = self.tensors().get("weight_zero_point")
        return Zeros() if words is None else Zeros(words, 4 * words.shape[1], 4)

    def scale(self) -> Tensor:
        return self.tensors()["weight_scale"].to(torch.float32)
