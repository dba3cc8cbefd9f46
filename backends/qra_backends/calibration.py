"""What a calibrated backend needs to know of a layer's inputs: their second moment, gathered batch by batch."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

MIN_OUTPUT_WEIGHT = 1e-4
"""Least output weight, as a share of the mean: outputs that no calibration token needed still count."""
STRIPES, MIN_STRIPE = 8, 128
"""Parts in which a symmetric matrix is summed: with 8, 56% of its products; smaller products are slower ones."""


class SecondMoment:
    """Mean of x xᵀ over all inputs x seen, in float32, weighted or not; linears that read the same input share one.

    A hook gathers it: `linear.register_forward_pre_hook(lambda _, inputs: moment.update(inputs[0]))`.

    `count` is the number of inputs seen.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self.count, self._weight = 0, torch.zeros(())

    @property
    def mean_weight(self) -> float:
        return float(self._weight) / self.count

    @torch.no_grad()
    def update(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Add inputs (..., in), each with its weight (n,), 1 if there are none."""
        rows = x.detach().to(torch.float32).reshape(-1, x.shape[-1])  # so a part of a batch is copied once
        if weights is not None:
            rows = rows * weights.sqrt()[:, None]
        self._weight = self._weight.to(rows.device) + (len(rows) if weights is None else weights.sum())
        size = rows.shape[1]
        if self._sum is None:
            self._sum = rows.new_zeros(size, size)
        for part in _list_stripes(size):
            self._sum[part, part.start :].addmm_(rows[:, part].T, rows[:, part.start :])
        self.count += len(rows)

    def compute_hessian(self) -> Tensor:
        """(in, in) float32, a new tensor: the mean of weight · x xᵀ, the Hessian of the squared output error.

        Raises:
            ValueError: no inputs were recorded.
        """
        if self._sum is None or not self.count:
            raise ValueError("no inputs were recorded: run the model on calibration data first")
        hessian = self._sum / self.count
        for part in _list_stripes(len(hessian)):
            hessian[part.stop :, part] = hessian[part, part.stop :].T
        return hessian


def pack_symmetric(matrix: Tensor) -> Tensor:
    """A matrix (n, n) that `SecondMoment` gave, without what lies left of its stripes; one dimension."""
    return torch.cat([matrix[part, part.start :].reshape(-1) for part in _list_stripes(len(matrix))])


def unpack_symmetric(packed: Tensor, size: int) -> Tensor:
    """The matrix (n, n) that `pack_symmetric` packed, exactly; a new tensor."""
    matrix = packed.new_empty(size, size)
    parts = _list_stripes(size)
    stripes = packed.split([(part.stop - part.start) * (size - part.start) for part in parts])
    for part, stripe in zip(parts, stripes, strict=True):
        matrix[part, part.start :] = stripe.view(part.stop - part.start, size - part.start)
        matrix[part.stop :, part] = matrix[part, part.stop :].T
    return matrix


def _list_stripes(size: int) -> list[slice]:
    """Rows that are summed together, of each only what lies right of the stripe's first column: it is symmetric."""
    step = max(MIN_STRIPE, -(-size // STRIPES))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def check_damping(damping: object) -> None:
    """Raises ValueError if a damping is no positive number."""
    if isinstance(damping, bool) or not isinstance(damping, int | float) or not 0 < damping < inf:
        raise ValueError(f"option 'damping' of a backend must be a positive number, got {damping!r}")


def check_hessian(name: str, hessian: Tensor | None, weight: Tensor) -> Tensor:
    """The Hessian that a calibrated backend was given for a weight (out, in), on the weight's device.

    Raises:
        ValueError: there is none, it is not (in, in), or it is not finite.
    """
    inputs = weight.shape[1]
    if hessian is None:
        raise ValueError(
            f"backend {name} needs `hessian`, the mean of x xᵀ over the layer's inputs: gather it with "
            f"qra_backends.SecondMoment, or pass torch.eye({inputs}) to quantize without calibration"
        )
    if tuple(hessian.shape) != (inputs, inputs):
        raise ValueError(
            f"hessian must be ({inputs}, {inputs}) for {inputs} inputs, got {tuple(hessian.shape)}"
        )
    if not torch.isfinite(torch.stack(hessian.aminmax())).all():
        raise ValueError("the Hessian holds values that are not finite: check the calibration inputs")
    return hessian.to(weight.device)


def check_output_weights(output_weights: Tensor | None, weight: Tensor) -> Tensor | None:
    """The weights (out,) of the squared errors of a weight's rows, float32 of mean 1, on the weight's device.

    None where none were given, or all are zero: every output then counts the same.

    Raises:
        ValueError: they are not (out,), not finite, or below zero.
    """
    if output_weights is None:
        return None
    if output_weights.shape != weight.shape[:1]:
        raise ValueError(f"output_weights must be ({len(weight)},), got {tuple(output_weights.shape)}")
    given = output_weights.to(weight.device, torch.float32)
    if not torch.isfinite(given).all() or (given < 0).any():
        raise ValueError(
            f"output_weights must be finite and not below zero, got {output_weights.min():g} to "
            f"{output_weights.max():g}"
        )
    mean = given.mean()
    return (given / mean).clamp_min(MIN_OUTPUT_WEIGHT) if mean > 0 else None
