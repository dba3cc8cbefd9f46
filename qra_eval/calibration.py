"""Second moments of the inputs of every linear, for backends that calibrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.training import Batch


def second_moments(
    model: Any, linears: Mapping[str, nn.Module], batches: Sequence[Batch], device: torch.device
) -> dict[str, Tensor]:
    """Mean of x xᵀ over all tokens for the input x of each linear: float32 (in, in) by name; see `input_moments`."""
    return input_moments(model, linears, batches, device)[0]


@torch.no_grad()
def input_moments(
    model: Any, linears: Mapping[str, nn.Module], batches: Sequence[Batch], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means of x xᵀ (in, in) and of x (in,) over all tokens for the input x of each linear, float32, by name.

    Linears that read the same tensor (q, k, v; gate, up) share one matrix. Padding is counted as well: it is little,
    since batches hold rows of similar length.
    """
    sums: dict[str, Tensor] = {}
    totals: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    last: list[tuple[Tensor, str]] = []
    tokens = 0

    def hook(name: str):
        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            for tensor, owner in last:
                if tensor is args[0]:
                    shared[name] = owner
                    return
            last.append((args[0], name))
            if len(last) > 4:
                del last[0]
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            product, total = x.T @ x, x.sum(0)
            sums[name] = sums[name].add_(product) if name in sums else product
            totals[name] = totals[name].add_(total) if name in totals else total

        return read

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        model.eval()
        for batch in batches:
            last.clear()
            model(input_ids=batch.input_ids.to(device), use_cache=False, logits_to_keep=1)
            tokens += batch.input_ids.numel()
    finally:
        for handle in handles:
            handle.remove()
    for some in (sums, totals):
        for total in some.values():
            total /= tokens
    owner = {name: shared.get(name, name) for name in linears}
    return {name: sums[owner[name]] for name in linears}, {name: totals[owner[name]] for name in linears}
