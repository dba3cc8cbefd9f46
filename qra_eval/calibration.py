"""Second moments of the inputs of every linear, for backends that calibrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.training import Batch


@torch.no_grad()
def second_moments(
    model: Any, linears: Mapping[str, nn.Linear], batches: Sequence[Batch], device: torch.device
) -> dict[str, Tensor]:
    """Mean of x xᵀ over all tokens for the input x of each linear: float32 (in, in) by name.

    Linears that read the same tensor (q, k, v; gate, up) share one matrix. Padding is counted as well: it is little,
    since batches hold rows of similar length.
    """
    sums: dict[str, Tensor] = {}
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
            product = x.T @ x
            sums[name] = sums[name].add_(product) if name in sums else product

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
    means = {name: total / tokens for name, total in sums.items()}
    return {name: means[shared.get(name, name)] for name in linears}
