"""Moments of the inputs of a model's linears, for backends that calibrate and adapters that start from the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from qra_backends import SecondMoment
from torch import Tensor, nn

from qra_eval.models.loaded import computed_in
from qra_eval.tasks.batches import Batch

HESSIAN_BYTES = 2 << 30
"""Hessians held at once, at most; those of a model that needs more are gathered in several passes over the data."""


class Hessians:
    """Mean of x xᵀ over the calibration tokens for the input x of each linear, (in, in) float32, when it is asked for.

    They are gathered in the order of the linears, for as many at once as `room` bytes hold, and the earlier ones are
    let go; so to ask in that order costs the fewest passes through the model. A linear that no token reaches (an
    expert that the router never chose) gets the identity: it is rounded to nearest.

    Args:
        compute: dtype of the passes; default: the model's own.
        room: bytes; one linear's Hessian is always held.
    """

    def __init__(
        self,
        model: Any,
        linears: Mapping[str, nn.Linear],
        batches: Sequence[Batch],
        device: torch.device,
        *,
        compute: torch.dtype | None = None,
        room: int = HESSIAN_BYTES,
    ):
        self.model, self.linears, self.batches, self.device, self.room = model, linears, batches, device, room
        self.compute = compute or model.dtype
        self.passes = 0
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name not in self._kept:
            self._kept = {}
            with computed_in(self.model, self.compute):
                self._kept = input_moments(self.model, self._chunk(name), self.batches, self.device)[0]
            self.passes += 1
        return self._kept[name]

    def _chunk(self, first: str) -> dict[str, nn.Linear]:
        """The linears from `first` on whose Hessians fit together, as if none were shared."""
        names = list(self.linears)
        chunk: dict[str, nn.Linear] = {}
        left = self.room
        for name in names[names.index(first) :]:
            left -= 4 * self.linears[name].in_features ** 2
            if left < 0 and chunk:
                break
            chunk[name] = self.linears[name]
        return chunk


@torch.no_grad()
def input_moments(
    model: Any, linears: Mapping[str, nn.Module], batches: Sequence[Batch], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means of x xᵀ (in, in) and of x (in,) over all tokens for the input x of each linear, float32, by name.

    Linears that read the same tensor (q, k, v; gate, up) share one matrix. Padding is counted as well: it is little,
    since batches hold rows of similar length. Where no token came by: the identity, and zeros.
    """
    moments: dict[str, SecondMoment] = {}
    shared: dict[str, str] = {}
    last: list[tuple[Tensor, str]] = []

    def hook(name: str):
        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            for tensor, owner in last:
                if tensor is args[0]:
                    shared[name] = owner
                    return
            last.append((args[0], name))
            if len(last) > 4:
                del last[0]
            moments.setdefault(name, SecondMoment()).update(args[0])

        return read

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        model.eval()
        for batch in batches:
            last.clear()
            model(input_ids=batch.input_ids.to(device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    squares = {name: moment.hessian() for name, moment in moments.items()}
    means = {name: moment.mean() for name, moment in moments.items()}
    owner = {name: shared.get(name, name) for name in linears}
    for name, linear in linears.items():
        if owner[name] not in squares:
            size = int(linear.in_features)  # type: ignore[arg-type]
            squares[name], means[name] = torch.eye(size, device=device), torch.zeros(size, device=device)
    return {name: squares[owner[name]] for name in linears}, {name: means[owner[name]] for name in linears}
