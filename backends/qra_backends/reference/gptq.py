"""Backend `reference-gptq`: the reference's storage, with codes chosen by GPTQ's error feedback on the layer's inputs.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from qra_backends.base import check_hessian
from qra_backends.reference import bitpack, groupwise
from qra_backends.reference.backend import ReferenceBackend

_BLOCK = 64  # columns whose feedback is applied one by one before the rest of the weight is updated at once


class ReferenceGPTQBackend(ReferenceBackend):
    """Each column's rounding error is made up for by the columns not yet rounded, as far as the inputs' Hessian allows.

    Columns go from the largest to the smallest mean squared input. Scale and offset are fixed beforehand (static
    groups), with the least squared error weighted by the Hessian's diagonal, so the order costs no storage.
    Without calibration data, say so with `hessian=torch.eye(in_features)`: rounding to nearest with `mse` ranges.

    Args:
        group_size: weights of a row that share scale and offset.
        damping: share of the Hessian's mean diagonal that is added to its diagonal; more trusts the data less.
    """

    name: ClassVar[str] = "reference-gptq"
    calibrated = True

    def __init__(self, *, group_size: int = 64, damping: float = 0.1):
        super().__init__(group_size=group_size, ranges="mse")
        if not damping > 0:
            raise ValueError(f"damping must be positive, got {damping!r}")
        self.damping = damping
        self.options = {"group_size": group_size, "damping": damping}
        self._last = WeakTensorKeyDictionary()  # the last Hessian's factor, for the next bit-width; goes when it goes

    def level_name(self, bits: int) -> str:
        return f"gptq-{bits}"

    def encode(self, weight: Tensor, bits: int, hessian: Tensor | None) -> dict[str, Tensor]:
        weight = weight.to(torch.float32)
        hessian = check_hessian(self.name, hessian, weight)
        factor = self._factor(hessian)
        importance = hessian.diagonal().to(weight)
        scale, offset = groupwise.fit_groups(weight, bits, self.group_size, ranges="mse", importance=importance)
        codes = feedback_codes(weight, scale, offset, bits, self.group_size, factor)
        return {"codes": bitpack.pack(codes, bits), "scale": scale, "offset": offset}

    def _factor(self, hessian: Tensor) -> Factor:
        if hessian.is_inference():  # keeps no version, so a change in place would go unseen
            return factorize(hessian, self.damping)
        version, factor = self._last.get(hessian, (None, None))
        if factor is None or version != hessian._version:
            self._last.clear()
            factor = factorize(hessian, self.damping)
            self._last[hessian] = (hessian._version, factor)
        return factor


class Factor(NamedTuple):
    """Order of rounding (in,), and the inverse Hessian's upper Cholesky factor (in, in) in that order."""

    order: Tensor
    upper: Tensor


def factorize(hessian: Tensor, damping: float) -> Factor:
    """The damped Hessian's inverse factor, columns ordered by falling diagonal.

    Raises:
        ValueError: the Hessian is not positive definite even with the damping.
    """
    diagonal = hessian.diagonal().float()
    order = diagonal.argsort(descending=True)
    matrix = hessian.float()[order][:, order]
    matrix.diagonal().add_(damping * diagonal.mean())
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        raise ValueError(
            "the Hessian must be positive definite, a mean of x xᵀ over the layer's inputs: "
            f"its diagonal's mean is {diagonal.mean().item():g}; gather more inputs or raise damping ({damping})"
        )
    return Factor(order, torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True))


def feedback_codes(weight: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, factor: Factor) -> Tensor:
    """Codes uint8 (out, in) of weight (out, in) under fixed scale and offset (out, groups).

    Rounds one column at a time and spreads its error over the columns to come; O(out · in²).
    """
    order, upper = factor
    columns = weight[:, order]
    group = order // group_size
    column_scale, column_offset = scale.float()[:, group].T.contiguous(), offset.float()[:, group].T.contiguous()
    codes = torch.empty_like(columns.T)  # a row a column, so that each is contiguous
    for start in range(0, columns.shape[1], _BLOCK):
        stop = min(start + _BLOCK, columns.shape[1])
        block, inverse = columns[:, start:stop].T.contiguous(), upper[start:stop, start:stop]
        pivots = inverse.diagonal().tolist()
        errors = torch.empty_like(block)
        for i, pivot in enumerate(pivots):
            s, o = column_scale[start + i], column_offset[start + i]
            code = groupwise.nearest(block[i], s, o, bits)
            codes[start + i] = code
            errors[i] = (block[i] - (code * s + o)) / pivot
            block[i + 1 :].addr_(inverse[i, i + 1 :], errors[i], alpha=-1)
        columns[:, stop:].addmm_(errors.T, upper[start:stop, stop:], alpha=-1)
    result = torch.empty_like(weight, dtype=torch.uint8)
    result[:, order] = codes.T.to(torch.uint8)
    return result
