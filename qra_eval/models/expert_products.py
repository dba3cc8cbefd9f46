"""Products of rows sorted by expert with the experts' weights and adapters, forward and backward.

Frozen weights are multiplied expert by expert, so that one dense weight is held at a time. On a GPU many experts' are
dequantized together, and multiplied at once if it has grouped products (`torch.nn.functional.grouped_mm`). Adapters are
multiplied all together.
"""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from qra_backends.modules import dequantize_together
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

BATCH_BYTES = 64 << 20
"""Dense weights that are made at once on a GPU, at most; one expert's are always held."""
ALIGNED = 8
"""Grouped products need rows of a multiple of 16 bytes: ranks are padded to a multiple of so many numbers."""


class LinearParts(NamedTuple):
    """What a linear without bias computes: `base(x) + scaling B A x`.

    The base is a plain weight (out, in), or a module that gives it; the factors are A (rank, in) and B (out, rank), or
    both None.
    """

    base: Tensor | nn.Module
    A: Tensor | None = None
    B: Tensor | None = None
    scaling: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        base = self.base
        return tuple(base.shape) if isinstance(base, Tensor) else (base.out_features, base.in_features)  # type: ignore

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The base's weight (out, in)."""
        return self.base.to(dtype) if isinstance(self.base, Tensor) else self.base.dequantize(dtype)  # type: ignore


class AdaptableLinear(nn.Module):
    """A linear that can tell what it computes, so that it need not be called."""

    @abstractmethod
    def parts(self) -> LinearParts | None:
        """The linear's parts; None if only its forward does all that it does."""


def parts_of(linear: nn.Module) -> LinearParts | None:
    """What a linear computes; None if it must be called.

    That is if it has hooks, a bias, dropout, or a base that is trained or gives no weight.
    """
    if hooked(linear):
        return None
    parts = linear.parts() if isinstance(linear, AdaptableLinear) else LinearParts(linear)
    if parts is None or isinstance(parts.base, Tensor):
        return parts
    base: Any = parts.base
    if hooked(base) or getattr(base, "bias", None) is not None:
        return None
    if type(base) is nn.Linear:
        return None if base.weight.requires_grad else parts._replace(base=base.weight)
    return parts if _dequantizes(type(base)) else None  # type: ignore[arg-type]


def hooked(module: nn.Module) -> bool:
    """Whether somebody wants to know when a module is called."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    )


@functools.cache
def _dequantizes(kind: type) -> bool:
    """Whether modules of a class have `dequantize(dtype)`, as those of this project's backends do."""
    method = getattr(kind, "dequantize", None)
    return method is not None and "dtype" in inspect.signature(method).parameters


def valueless(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but a shape: on the meta device, or a fake one of an estimate."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


class GroupedLinears:
    """The linears of one kind of several experts: `counts[i]` rows go through `parts[i]`."""

    def __init__(self, parts: Sequence[LinearParts], counts: Sequence[int]):
        self.parts, self.counts = parts, list(counts)
        self.factors = [factor for part in parts for factor in (part.A, part.B) if factor is not None]

    def product(self, x: Tensor) -> Tensor:
        """x (M, in) through the linears: (M, out)."""
        if valueless(x):
            return x.new_empty(len(x), self.parts[0].shape[0])
        y = self._by_base(x, forward=True)
        return y.add_(self._adapter(_wide(x), self._rounded(x))) if self.factors else y

    def pull(self, grad: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradients by x (M, in) and by `factors` from the gradient by the output (M, out)."""
        if valueless(x):
            return torch.empty_like(x), [torch.empty_like(factor) for factor in self.factors]
        by_x = self._by_base(grad, forward=False)
        if not self.factors:
            return by_x, []
        with torch.enable_grad():
            given = [t.detach().requires_grad_() for t in (_wide(x), *self._rounded(x))]
            by_adapter, *found = torch.autograd.grad(self._adapter(given[0], given[1:]), given, _wide(grad))
        return by_x.add_(by_adapter), [g.to(factor.dtype) for g, factor in zip(found, self.factors, strict=True)]

    def _rounded(self, x: Tensor) -> list[Tensor]:
        """The factors rounded to the dtype of x first, as everywhere, and then as they are multiplied."""
        return [_wide(factor.to(x.dtype)) for factor in self.factors]

    def _by_base(self, rows: Tensor, *, forward: bool) -> Tensor:
        """Rows (M, in) by the frozen weights, or rows (M, out) of a gradient back through them."""
        out, inputs = self.parts[0].shape
        made = rows.new_empty(len(rows), out if forward else inputs)
        at_once, start = self._at_once(rows), 0
        for first in range(0, len(self.parts), at_once):
            some, counts = self.parts[first : first + at_once], self.counts[first : first + at_once]
            stop = start + sum(counts)
            if at_once == 1:
                weight = some[0].weight(rows.dtype)
                torch.mm(rows[start:stop], weight.t() if forward else weight, out=made[start:stop])
            else:
                weights = weights_of(some, rows.dtype)
                made[start:stop] = grouped_product(rows[start:stop], weights.mT if forward else weights, counts)
            start = stop
        return made

    def _at_once(self, rows: Tensor) -> int:
        """Experts whose frozen weights are made together. On a CPU making and multiplying take longer than calling."""
        out, inputs = self.parts[0].shape
        if not rows.is_cuda:
            return 1
        return max(1, BATCH_BYTES // (out * inputs * rows.element_size()))

    def _adapter(self, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """What the adapters add (M, out) for x (M, in), both in one dtype; differentiable by x and the factors."""
        out, inputs = self.parts[0].shape
        rank = max(len(part.A) for part in self.parts if part.A is not None)
        rank += -rank % ALIGNED
        left, As, Bs = iter(factors), [], []
        for part in self.parts:
            A, B = (x.new_zeros(0, inputs), x.new_zeros(out, 0)) if part.A is None else (next(left), next(left))
            As.append(F.pad(A, (0, 0, 0, rank - len(A))))
            Bs.append(F.pad(B, (0, rank - B.shape[1])))
        scaling = torch.tensor([part.scaling for part in self.parts], dtype=x.dtype, device=x.device)
        by_row = scaling.repeat_interleave(torch.tensor(self.counts, device=x.device))[:, None]
        low = grouped_product(x, torch.stack(As).mT, self.counts) * by_row
        return grouped_product(low, torch.stack(Bs).mT, self.counts)


def weights_of(parts: Sequence[LinearParts], dtype: torch.dtype) -> Tensor:
    """The frozen weights (E, out, in) of several linears, those of a level by a few launches together."""
    modules = [part.base for part in parts if not isinstance(part.base, Tensor)]
    if len(modules) == len(parts):
        return dequantize_together(modules, dtype)
    return torch.stack([part.weight(dtype) for part in parts])


def grouped_product(x: Tensor, matrices: Tensor, counts: Sequence[int]) -> Tensor:
    """x (M, p), of which `counts[i]` rows go by the i-th of matrices (E, p, q): (M, q); differentiable."""
    if has_grouped_products(x, *matrices.shape[1:]):
        ends = torch.tensor(counts, device=x.device).cumsum(0).to(torch.int32)
        return F.grouped_mm(x, matrices, offs=ends)
    return torch.cat([rows @ matrix for rows, matrix in zip(x.split(list(counts)), matrices.unbind(), strict=True)])


def has_grouped_products(x: Tensor, *sizes: int) -> bool:
    """Whether torch multiplies such rows with matrices of these sizes by group: from 2.10 on.

    Its kernel is for bfloat16 on Hopper and data-centre Blackwell (9.x, 10.x). On other GPUs it refuses, or waits for
    the counts on the host, which are known here.
    """
    if not hasattr(F, "grouped_mm") or any(size % ALIGNED for size in sizes):
        return False
    if not x.is_cuda:
        return x.device.type == "cpu"
    return x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device)[0] in (9, 10)


def _wide(rows: Tensor) -> Tensor:
    """Rows in the dtype in which adapters are multiplied: float32 on a CPU, where small products in bfloat16 take three
    times as long."""
    return rows.float() if rows.device.type == "cpu" else rows
