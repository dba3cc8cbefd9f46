"""Scale and offset of every group of a row, and the codes that follow: w ≈ scale · code + offset."""

from __future__ import annotations

import torch
from torch import Tensor

from qra_backends.reference.packed import GROUP_DTYPE

RANGES = ("minmax", "mse")
_SHRINK = tuple(1 - 0.05 * i for i in range(8))  # shares of the full range to start from
_NARROWEST_WHOLE = 5  # bits from which on the full range is the only start: there is next to nothing to clip
_LEAST_SCALE = 2.0**-24  # of float16
_REFITS = 2  # least-squares steps from each start; more gained under 1% of squared error


def fit_groups(
    weight: Tensor, bits: int, group_size: int, *, ranges: str = "minmax", importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and offset of each group.

    `minmax` spans each group, as far as its scale in float16 does. `mse` looks for the least squared error: from
    several shrunken ranges, round, refit scale and offset to the codes by least squares, and keep the best seen; never
    worse than `minmax`.

    Args:
        weight: float32 (out, in).
        importance: (in,), weight of each column's squared error in `mse`; all equal where None.

    Returns:
        scale, offset: float16 (out, ceil(in / group_size)).
    """
    if importance is None:
        importance = torch.ones(weight.shape[1], device=weight.device)
    fit = _fit_mse if ranges == "mse" else _fit_min_max
    parts = [
        fit(columns.unflatten(1, (-1, size)), weights.unflatten(0, (-1, size)), bits)
        for columns, weights, size in _split(weight, importance, group_size)
    ]
    scale, offset = (torch.cat(tensors, dim=1).to(GROUP_DTYPE) for tensors in zip(*parts, strict=True))
    return scale, offset


def encode(weight: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int) -> Tensor:
    """Nearest codes, uint8 (out, in), under the scale and offset (out, groups) as they are stored."""
    columns = torch.arange(weight.shape[1], device=weight.device) // group_size
    return round_to_codes(weight, scale.float()[:, columns], offset.float()[:, columns], bits).to(torch.uint8)


def round_to_codes(
    weight: Tensor, scale: Tensor, offset: Tensor, bits: int, *, out: Tensor | None = None
) -> Tensor:
    """Nearest codes as floats; 0 where the scale is 0, as in a group of equal weights. All arguments broadcast."""
    codes = torch.sub(weight, offset, out=out).div_(torch.where(scale == 0, 1.0, scale))
    return codes.round_().clamp_(0, 2**bits - 1)


def _split(weight: Tensor, importance: Tensor, group_size: int) -> list[tuple[Tensor, Tensor, int]]:
    """The columns in whole groups, then those left over as one shorter group."""
    columns = weight.shape[1]
    whole = columns // group_size * group_size
    parts = [
        (weight[:, :whole], importance[:whole], group_size),
        (weight[:, whole:], importance[whole:], columns - whole),
    ]
    return [part for part in parts if part[0].shape[1]]


def _fit_min_max(weight: Tensor, importance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = weight.aminmax(dim=-1)
    return _round_scale_to_stored((high - low) / (2**bits - 1)), low


def _fit_mse(weight: Tensor, importance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and offset (out, groups) of weight (out, groups, size); importance (groups, size)."""
    # A group whose inputs were never seen still has to be coded: the floor makes its columns equal.
    importance = importance / importance.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    importance = importance + 1e-6
    total = importance.sum(-1, keepdim=True)
    mean_weight = (importance * weight).sum(-1, keepdim=True) / total
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    center, half = (high + low) / 2, (high - low) / 2
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_offset = torch.zeros_like(low), low
    centered = weight - mean_weight
    codes, work = torch.empty_like(centered), torch.empty_like(centered)
    for share in _SHRINK if bits < _NARROWEST_WHOLE else _SHRINK[:1]:
        scale, offset = 2 * share * half / (2**bits - 1), center - share * half
        for refit in range(_REFITS + 1):
            scale, offset = _round_scale_to_stored(scale), _round_to_stored(offset)
            round_to_codes(weight, scale, offset, bits, out=codes)
            torch.mul(codes, scale, out=work).add_(offset).sub_(weight)
            error = work.square_().mul_(importance).sum(-1, keepdim=True)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            best_offset = torch.where(better, offset, best_offset)
            if refit < _REFITS:
                mean_code = torch.mul(importance, codes, out=work).sum(-1, keepdim=True) / total
                weighted = torch.mul(codes.sub_(mean_code), importance, out=work)
                variance = codes.mul_(weighted).sum(-1, keepdim=True)
                covariance = weighted.mul_(centered).sum(-1, keepdim=True)
                scale = torch.where(variance > 0, covariance / variance.clamp_min(1e-20), scale)
                offset = mean_weight - scale * mean_code
    return best_scale.squeeze(-1), best_offset.squeeze(-1)


def _round_to_stored(values: Tensor) -> Tensor:
    """Values as they are read back: the codes must suit the rounded scale and offset."""
    return values.to(GROUP_DTYPE).to(torch.float32)


def _round_scale_to_stored(scale: Tensor) -> Tensor:
    """Scale as it is read back, never 0 for weights that differ: their group would be lost in one code."""
    stored = _round_to_stored(scale)
    return torch.where((scale > 0) & (stored == 0), _LEAST_SCALE, stored)
