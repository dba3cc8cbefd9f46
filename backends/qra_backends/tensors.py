"""Backends that say which tensors a weight is stored in: sizes, checks and loading follow from that."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, Expected, Level
from qra_backends.storage import StorageFormat


class TensorBackend(Backend):
    """The base of backends that say which tensors a weight is stored in.

    A subclass gives `expected`, `module`, `to_tensors`, `layer`, and `encode`, or `encode_levels` if levels share work.
    """

    @property
    @abstractmethod
    def layer(self) -> type[nn.Module]:
        """Of the modules that it makes; it has `dequantize`."""

    @abstractmethod
    def expected(
        self, bits: Level, out_features: int, in_features: int, dtype: torch.dtype = torch.bfloat16
    ) -> Expected:
        """Shape and dtype of each tensor, by name; shapes that cannot be stored are rounded up.

        Args:
            dtype: that the module computes in; all dtypes take the same bytes.
        """

    @abstractmethod
    def module(self, tensors: dict[str, Tensor], bits: Level, **form: Any) -> nn.Module:
        """A layer of these tensors, which were checked.

        Args:
            form: out_features, in_features, dtype, and bias, a parameter of the layer's own or None.
        """

    def storage(self, bits: Level) -> StorageFormat:
        self.check_bits(bits)
        return _Summed(self, bits)

    def dequantize(self, module: nn.Module) -> Tensor:
        weight: Tensor = self.own(module).dequantize()
        return weight

    def from_tensors(
        self,
        tensors: dict[str, Tensor],
        *,
        bits: Level,
        out_features: int,
        in_features: int,
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> nn.Module:
        self.check_shape(bits, out_features, in_features)
        owner = f"{self!r} at {bits if isinstance(bits, str) else f'{bits} bits'}"
        check_tensors(tensors, self.expected(bits, out_features, in_features, dtype), owner)
        frozen = copy_bias(bias, dtype, next(iter(tensors.values())).device)
        form = {"out_features": out_features, "in_features": in_features, "bias": frozen, "dtype": dtype}
        return self.module(tensors, bits, **form)

    def own(self, module: nn.Module) -> Any:
        """The module itself.

        Raises:
            ValueError: it is not of this backend.
        """
        if not isinstance(module, self.layer):
            raise ValueError(f"expected a {self.layer.__name__} made by this backend, got {type(module).__name__}")
        return module


@dataclass(frozen=True)
class _Summed:
    """The bytes of the tensors that a backend expects."""

    backend: TensorBackend
    bits: Level

    def bytes(self, out_features: int, in_features: int) -> int:
        tensors = self.backend.expected(self.bits, out_features, in_features).values()
        return sum(prod(shape) * dtype.itemsize for shape, dtype in tensors)


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
