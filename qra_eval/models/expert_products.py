"""Products of rows sorted by expert with the experts' weights, forward and backward, without autograd in between.

`Sliced` multiplies expert by expert, and holds one dense weight at a time: the fastest on a CPU, where a product takes
longer than calling it. `Stacked` multiplies a whole batch of experts at once: for a GPU, where it is the other way.
"""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

RANK_MULTIPLE = 8
"""Stacked ranks are padded to a multiple of it: a row is then 16 bytes in half precision, as grouped products need."""


class LinearParts(NamedTuple):
    """What a linear without bias computes: `base(x) + scaling B A x`.

    The base is a plain weight (out, in), or a module; the factors are A (rank, in) and B (out, rank), or both None.
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


class AdaptableLinear(nn.Module):
    """A linear that can tell what it computes, so that it need not be called."""

    @abstractmethod
    def parts(self) -> LinearParts | None:
        """The linear's parts; None if only its forward does all that it does."""


def parts_of(linear: nn.Module) -> LinearParts | None:
    """What a linear computes; None if it must be called: it has hooks, a bias, dropout, or is of no known kind."""
    if hooked(linear):
        return None
    if isinstance(linear, AdaptableLinear):
        parts = linear.parts()
        if parts is None or isinstance(parts.base, Tensor):
            return parts
    elif isinstance(linear, nn.Linear):
        parts = LinearParts(linear)
    else:
        return None
    base = parts.base
    if hooked(base) or getattr(base, "bias", None) is not None:  # type: ignore[arg-type]
        return None
    if type(base) is nn.Linear:
        return None if base.weight.requires_grad else parts._replace(base=base.weight)
    return parts


def hooked(module: nn.Module) -> bool:
    """Whether somebody wants to know when a module is called."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def dense(base: Tensor | nn.Module, dtype: torch.dtype) -> Tensor | None:
    """The base's weight (out, in) in `dtype`; None of a module that does not give it."""
    if isinstance(base, Tensor):
        return base.to(dtype)
    return base.dequantize(dtype) if gives_weight(base) else None  # type: ignore[operator]


def gives_weight(base: Tensor | nn.Module) -> bool:
    """Whether `dense` has an answer; hqq's own modules dequantize to no dtype but their own."""
    return isinstance(base, Tensor) or _takes_dtype(getattr(type(base), "dequantize", None))


@functools.cache
def _takes_dtype(method: Any) -> bool:
    return method is not None and "dtype" in inspect.signature(method).parameters


class Sliced:
    """One of the linears of several experts: `counts[i]` rows go through `parts[i]`, one expert after another.

    Adapters are multiplied in float32 on a CPU: products this small take a third of the time that they do in bfloat16.
    The factors are rounded first, as everywhere.
    """

    def __init__(self, parts: Sequence[LinearParts], counts: Sequence[int]):
        self.parts, self.counts = parts, list(counts)

    def product(self, x: Tensor, out: Tensor) -> Tensor:
        """x (M, in) through the linears into `out` (M, out)."""
        wide = self._wide(x)
        for part, rows, wide_rows, y in zip(self.parts, *map(self._split, (x, wide, out)), strict=True):
            weight = dense(part.base, x.dtype)
            if weight is None:
                y.copy_(part.base(rows))  # type: ignore[operator]
            else:
                torch.mm(rows, weight.t(), out=y)
            if part.A is not None and part.B is not None:
                low = torch.mm(wide_rows, _rounded(part.A, x, wide).t()).mul_(part.scaling)
                _add_product(y, low, _rounded(part.B, x, wide).t())
        return out

    def pull(self, grad: Tensor, x: Tensor, into: Tensor | None, *, add: bool = False) -> list[Tensor]:
        """Gradients from those of the output, grad (M, out): by x (M, in) into `into`, or added to it; by the factors
        in the order A, B of each expert that has them."""
        found: list[Tensor] = []
        wide, wide_grad = self._wide(x), self._wide(grad)
        targets = self._split(into) if into is not None else [None] * len(self.parts)
        splits = map(self._split, (grad, x, wide_grad, wide))
        for part, dx, g, rows, wide_g, wide_rows in zip(self.parts, targets, *splits, strict=True):
            if dx is not None:
                weight = dense(part.base, x.dtype)
                if weight is None:
                    pulled = _through(part.base, rows, g)
                    dx.add_(pulled) if add else dx.copy_(pulled)
                elif add:
                    dx.addmm_(g, weight)
                else:
                    torch.mm(g, weight, out=dx)
            if part.A is not None and part.B is not None:
                A, B = _rounded(part.A, x, wide), _rounded(part.B, x, wide)
                low = torch.mm(wide_rows, A.t()).mul_(part.scaling)
                low_grad = torch.mm(wide_g, B).mul_(part.scaling)
                if dx is not None:
                    _add_product(dx, low_grad, A)
                found += (low_grad.t() @ wide_rows).to(part.A.dtype), (wide_g.t() @ low).to(part.B.dtype)
        return found

    def _split(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.split(self.counts)

    def _wide(self, rows: Tensor) -> Tensor:
        """Rows in the dtype in which adapters are multiplied."""
        small = rows.device.type == "cpu" and rows.element_size() < 4
        return rows.float() if small and any(part.A is not None for part in self.parts) else rows


def _rounded(factor: Tensor, x: Tensor, wide: Tensor) -> Tensor:
    return factor.to(x.dtype).to(wide.dtype)


def _add_product(y: Tensor, a: Tensor, b: Tensor) -> None:
    if y.dtype == a.dtype:
        y.addmm_(a, b)
    else:
        y += a @ b


def _through(base: Tensor | nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    """Gradient by x of a module that gives no weight: it is called again."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(base(x), x, grad)[0]  # type: ignore[operator]


class Stacked:
    """As `Sliced`, with the weights of all experts in one tensor, and the factors padded to one rank.

    All bases must give their weight, and inputs and outputs be multiples of `RANK_MULTIPLE`.
    """

    def __init__(self, parts: Sequence[LinearParts], rows: Rows):
        self.parts, self.rows = parts, rows

    def product(self, x: Tensor, out: Tensor) -> Tensor:
        """x (M, in) through the linears into `out` (M, out)."""
        rows = self.rows
        out.copy_(rows.times(x, self._weights(x.dtype).mT))
        if any(part.A is not None for part in self.parts):
            A, B, scaling = self._factors(x.dtype)
            out += rows.times(rows.times(x, A.mT) * scaling, B.mT)
        return out

    def pull(self, grad: Tensor, x: Tensor, into: Tensor | None, *, add: bool = False) -> list[Tensor]:
        """Gradients as `Sliced.pull` gives them."""
        rows = self.rows
        if into is not None:
            pulled = rows.times(grad, self._weights(x.dtype))
            into.add_(pulled) if add else into.copy_(pulled)
        if all(part.A is None for part in self.parts):
            return []
        A, B, scaling = self._factors(x.dtype)
        low, low_grad = rows.times(x, A.mT) * scaling, rows.times(grad, B) * scaling
        if into is not None:
            into += rows.times(low_grad, A)
        dA, dB = rows.outer(low_grad, x), rows.outer(grad, low)
        found: list[Tensor] = []
        for i, part in enumerate(self.parts):
            if part.A is not None and part.B is not None:
                rank = len(part.A)
                found += dA[i, :rank].to(part.A.dtype), dB[i, :, :rank].to(part.B.dtype)
        return found

    def _weights(self, dtype: torch.dtype) -> Tensor:
        return torch.stack([dense(part.base, dtype) for part in self.parts])  # type: ignore[misc]

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """A (E, rank, in), B (E, out, rank) and the scaling of each row (M, 1); zeros without an adapter."""
        rank = max(0 if part.A is None else len(part.A) for part in self.parts)
        rank += -rank % RANK_MULTIPLE
        out, inputs = self.parts[0].shape
        like = next(part.A for part in self.parts if part.A is not None)
        A = like.new_zeros(len(self.parts), rank, inputs, dtype=dtype)
        B = like.new_zeros(len(self.parts), out, rank, dtype=dtype)
        for i, part in enumerate(self.parts):
            if part.A is not None and part.B is not None:
                A[i, : len(part.A)], B[i, :, : len(part.A)] = part.A, part.B
        scaling = torch.tensor([part.scaling for part in self.parts], dtype=dtype, device=like.device)
        return A, B, self.rows.spread(scaling)


class Rows:
    """Rows (M, ...) sorted by expert, multiplied by group: as they lie, or padded to groups of one length.

    Attributes:
        padding: how many times as many rows the padded ones are.
    """

    def __init__(self, counts: Sequence[int], like: Tensor):
        sizes = torch.tensor(counts, device=like.device)
        self.ends = sizes.cumsum(0)
        self.expert = torch.repeat_interleave(sizes, output_size=sum(counts))
        self.place = torch.arange(sum(counts), device=like.device) - (self.ends - sizes)[self.expert]
        self.shape = len(counts), max(counts)
        self.grouped = grouped_products(like.device, like.dtype)
        self.padding = len(counts) * max(counts) / sum(counts)

    def spread(self, values: Tensor) -> Tensor:
        """Values (E,), one for each row (M, 1)."""
        return values[self.expert, None]

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        """x (M, p) by matrices (E, p, q): (M, q)."""
        if self.grouped:
            return torch._grouped_mm(x, matrices, offs=self.ends.to(torch.int32))
        return torch.bmm(self._padded(x), matrices)[self.expert, self.place]

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        """a' b of the rows of each expert, (E, p, q), of a (M, p) and b (M, q)."""
        if self.grouped:
            return torch._grouped_mm(a.t(), b, offs=self.ends.to(torch.int32))
        return torch.bmm(self._padded(a).mT, self._padded(b))

    def _padded(self, x: Tensor) -> Tensor:
        padded = x.new_zeros(*self.shape, x.shape[1])
        padded[self.expert, self.place] = x
        return padded


def grouped_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch._grouped_mm` serves: in bfloat16, on GPUs from Ampere on."""
    if device.type != "cuda" or dtype != torch.bfloat16 or not hasattr(torch, "_grouped_mm"):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
