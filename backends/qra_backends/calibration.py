"""What a calibrated backend needs to know of a layer's inputs: their moments, gathered batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor


class SecondMoment:
    """Means of x xᵀ and of x over all inputs x seen, in float32; linears that read the same input share one.

    A hook gathers it: `linear.register_forward_pre_hook(lambda _, inputs: moment.update(inputs[0]))`.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._total: Tensor | None = None
        self.count = 0

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add inputs (..., in)."""
        rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
        product, total = rows.T @ rows, rows.sum(0)
        self._sum = product if self._sum is None else self._sum.add_(product)
        self._total = total if self._total is None else self._total.add_(total)
        self.count += len(rows)

    def hessian(self) -> Tensor:
        """(in, in) float32, a new tensor: the Hessian of the squared output error, up to a factor.

        Raises:
            ValueError: no input was seen.
        """
        if self._sum is None:
            raise ValueError("no input was seen: run the model on calibration data first")
        return self._sum / self.count

    def mean(self) -> Tensor:
        """(in,) float32, a new tensor.

        Raises:
            ValueError: no input was seen.
        """
        if self._total is None:
            raise ValueError("no input was seen: run the model on calibration data first")
        return self._total / self.count
