"""Backend `reference-gptq`: the reference's storage, with codes chosen by GPTQ's error feedback on the layer's inputs.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323.

Memory to quantize (out, in), in float32 arrays: two of (in, in) while the Hessian is factorized; then one, the factor,
with 2.5 (1.5 if the weight is float32) of a block of rows, which is the whole weight up to 4608 rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from qra_backends import kernels
from qra_backends.base import Backend
from qra_backends.calibration import check_damping, check_hessian
from qra_backends.reference import groupwise
from qra_backends.reference.backend import ReferenceBackend, join_blocks
from qra_backends.storage import ceil_div, choose_block_rows, count_block_bytes

_BLOCK = 64  # columns whose feedback is applied one by one before the rest of the weight is updated at once
_ROWS_AT_ONCE = {"cpu": 4608}  # a block of columns then takes about 1 MiB
_DEFAULT_ROWS_AT_ONCE = 1 << 16


class ErrorFeedback(Backend):
    """The base of backends that fit groups first, then choose codes by feedback.

    A subclass gives `fit`, `pack`, `choose_group_size` and `damping`.
    """

    calibrated = True
    side_by_side = True
    damping: float

    @abstractmethod
    def fit(self, rows: Tensor, bits: int, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset (n, groups) of float32 rows (n, in), of values that can be stored.

        Args:
            importance: (in,), weight of each column's squared error.
        """

    @abstractmethod
    def pack(self, bits: int, codes: Tensor, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
        """The tensors of a block of rows with codes uint8 (n, in)."""

    @abstractmethod
    def choose_group_size(self, in_features: int) -> int:
        """Weights of a row that share a scale."""

    def finish_tensors(self, bits: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a weight from those of its blocks, which are joined."""
        return tensors

    def count_work_bytes(
        self, levels: Sequence[int], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        matrix = 4 * in_features**2
        stored = [self.storage(bits).bytes(out_features, in_features) for bits in levels]
        rows = min(out_features, _ROWS_AT_ONCE.get(device, _DEFAULT_ROWS_AT_ONCE))
        fitting = count_block_bytes(out_features * in_features, device, 4.3 - (dtype == torch.float32))
        if device == "cpu":
            # The block in floats, its columns in order and two times its codes; done blocks are in pieces.
            block = 4 * rows * in_features * ((dtype != torch.float32) + 1.5)
            pieces = max(stored) * (1 - rows / out_features)
            return int(max(2 * matrix, matrix + block + pieces)) + fitting
        # As counted: feedback has the columns and their codes; of a block of columns its values in floats and as codes,
        # and the errors, those of the block before as well; and five arrays of the groups. cuSOLVER inverts in a copy.
        groups = ceil_div(in_features, self.choose_group_size(in_features))
        feedback = 5 * in_features + 14 * min(_BLOCK, in_features) + 20 * groups
        block = rows * (4 * in_features * (dtype != torch.float32) + feedback)
        last = matrix + max(block, fitting) - int(min(stored) * rows / out_features)
        return max(3 * matrix - sum(stored), last, 0)

    def encode_levels(
        self, weight: Tensor, levels: Sequence[int], hessian: Tensor | None, output_weights: Tensor | None
    ) -> dict[int, dict[str, Tensor]]:
        """The tensors of each level; rows do not depend on one another, and are worked on in blocks."""
        hessian = check_hessian(self.name, hessian, weight)
        factor = factorize(hessian, self.damping)
        importance = hessian.diagonal().to(torch.float32)
        group_size = self.choose_group_size(weight.shape[1])
        made = {}
        for bits in levels:
            blocks = []
            for rows in weight.split(_ROWS_AT_ONCE.get(weight.device.type, _DEFAULT_ROWS_AT_ONCE)):
                rows = rows.to(torch.float32)
                few = rows.split(choose_block_rows(rows.shape[1], rows.device))
                fitted = zip(*(self.fit(some, bits, importance) for some in few), strict=True)
                scale, offset = map(torch.cat, fitted)
                codes = choose_codes(rows, scale, offset, bits, group_size, factor)
                blocks.append(self.pack(bits, codes, scale, offset))
            made[bits] = self.finish_tensors(bits, join_blocks(blocks))
        return made


class ReferenceGPTQBackend(ErrorFeedback, ReferenceBackend):
    """Each column's rounding error is made up for by the columns not yet rounded, as far as the inputs' Hessian allows.

    Columns go from the largest to the smallest mean squared input. Scale and offset are fixed beforehand (static
    groups), with the least squared error weighted by the Hessian's diagonal, so the order costs no storage.
    Without calibration data, say so with `hessian=torch.eye(in_features)`: rounding to nearest with `mse` ranges.

    Args:
        group_size: weights of a row that share scale and offset.
        damping: share of the Hessian's mean diagonal that is added to its diagonal; more trusts the data less.
    """

    name: ClassVar[str] = "reference-gptq"
    revision: ClassVar[int] = 3

    def __init__(self, *, group_size: int = 64, damping: float = 0.1):
        super().__init__(group_size=group_size, ranges="mse")
        check_damping(damping)
        self.damping = damping
        self.options = {"group_size": group_size, "damping": damping}

    def choose_group_size(self, in_features: int) -> int:
        return self.group_size

    def fit(self, rows: Tensor, bits: int, importance: Tensor) -> tuple[Tensor, Tensor]:
        return groupwise.fit_groups(rows, bits, self.group_size, ranges="mse", importance=importance)

    def pack(self, bits: int, codes: Tensor, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
        return {"codes": groupwise.pack(codes, bits), "scale": scale, "offset": offset}


class Factor(NamedTuple):
    """Order of rounding (in,), and the inverse Hessian's upper Cholesky factor (in, in) in that order."""

    order: Tensor
    upper: Tensor


def factorize(hessian: Tensor, damping: float, *, order: Tensor | None = None) -> Factor:
    """The damped Hessian's inverse factor, columns in the order given (in,), or by falling diagonal.

    Raises:
        ValueError: the Hessian is not positive definite even with the damping.
    """
    diagonal = hessian.diagonal().float()
    if order is None:
        order = diagonal.argsort(descending=True)
    matrix = hessian[order][:, order].float()
    matrix.diagonal().add_(damping * diagonal.mean())
    matrix, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        raise ValueError(
            f"the Hessian is not positive definite with damping {damping} (mean of its diagonal "
            f"{diagonal.mean().item():g}): calibrate on more rows, or raise the damping"
        )
    matrix = torch.cholesky_inverse(matrix)
    return Factor(order, torch.linalg.cholesky(matrix, upper=True))


def choose_codes(
    weight: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int, factor: Factor
) -> Tensor:
    """Codes uint8 (out, in) of a float32 weight (out, in), under scales and offsets (out, groups).

    Rounds one column at a time and spreads its error over the columns to come; O(out · in²).
    """
    order, upper = factor
    scale, offset = scale.float().T.contiguous(), offset.float().T.contiguous()
    columns = weight.T[order].contiguous()
    chosen = torch.empty_like(columns, dtype=torch.uint8)
    round_block: Any = round_columns
    if kernels.are_kernels_usable(weight.device):
        from qra_backends.reference.feedback_triton import round_columns as round_block
    for start in range(0, len(order), _BLOCK):
        own = slice(start, min(start + _BLOCK, len(order)))
        groups = order[own] // group_size
        codes, errors = round_block(columns[own], upper[own, own], groups, scale, offset, 2.0**bits - 1)
        chosen[order[own]] = codes
        columns[own.stop :].addmm_(upper[own, own.stop :].T, errors, alpha=-1)
    return chosen.T


def round_columns(
    block: Tensor,
    inverse: Tensor,
    groups: Tensor,
    scale: Tensor,
    offset: Tensor,
    highest: float,
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `feedback_triton.round_columns`; the block is used up.

    If codes stand for ascending `values`, weights are scale · value + offset.
    """
    divisor = torch.where(scale == 0, 1.0, scale)
    middles = None if values is None else (values[1:] + values[:-1]) / 2
    rounded, errors = torch.empty_like(block), torch.empty_like(block)
    for i, (group, pivot) in enumerate(zip(groups.tolist(), inverse.diagonal().tolist(), strict=True)):
        column, code, error = block[i], rounded[i], errors[i]
        torch.sub(column, offset[group], out=code).div_(divisor[group])
        if values is None or middles is None:
            nearest = code.round_().clamp_(0, highest)
        else:
            chosen = torch.bucketize(code, middles)
            code.copy_(chosen)
            nearest = values[chosen]
        torch.mul(nearest, scale[group], out=error).add_(offset[group])
        torch.sub(column, error, out=error).div_(pivot)
        block[i + 1 :].addr_(inverse[i, i + 1 :], error, alpha=-1)
    return rounded.to(torch.uint8), errors
