"""Moments of the inputs of a layer's linears, for backends that calibrate and adapters that start from the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from qra_backends import SecondMoment
from torch import Tensor, nn

from qra_eval.quantized.blocks import Blocks, Flow

SHRINK_TOKENS = 256
"""An expert's moments are drawn towards those of all experts of its layer as by so many tokens: enough to mend one that
the router rarely chose, and little beside the thousands that others see."""


class LayerMoments:
    """Means of x xᵀ (in, in), float32, over the tokens that each linear of a layer reads.

    Linears that read the same tensor (q, k, v; gate, up) share one matrix. Padding up to the longest row of a batch is
    counted as well: it is little, since batches hold rows of similar length. An expert's matrix is drawn towards that
    of all experts of its layer, by `SHRINK_TOKENS`; a linear that no token reached, and that has no likes, gets the
    identity: rounding to nearest.
    """

    def __init__(self, linears: Mapping[str, nn.Module]):
        self._linears = linears
        self.width = 0  # tokens of a row that count; 0: all
        self._moments: dict[str, SecondMoment] = {}
        self._shared: dict[str, str] = {}
        self._last: list[tuple[Tensor, str]] = []
        self._hessians: dict[str, Tensor] = {}
        self._kinds: dict[str, Tensor | None] = {}

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """While the context lasts, all that the linears read is counted."""
        handles = [linear.register_forward_pre_hook(self._hook(name)) for name, linear in self._linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last.clear()

    def _hook(self, name: str) -> Any:
        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            for tensor, owner in self._last:
                if tensor is args[0]:
                    self._shared[name] = owner
                    return
            self._last.append((args[0], name))
            if len(self._last) > 4:
                del self._last[0]
            x = args[0] if not self.width or args[0].dim() < 3 else args[0][:, : self.width]
            self._moments.setdefault(name, SecondMoment()).update(x)

        return read

    def take(self, other: LayerMoments) -> None:
        """What another has gathered, by name."""
        self._moments |= other._moments

    def owner(self, name: str) -> str:
        """The linear whose matrix this one shares; itself if it shares none."""
        return self._shared.get(name, name)

    def tokens(self, name: str) -> int:
        """Tokens that a linear read."""
        moment = self._moments.get(self.owner(name))
        return 0 if moment is None else moment.count

    def hessian(self, name: str) -> Tensor:
        """Mean of x xᵀ, (in, in); the same tensor for linears that read the same, until `release`."""
        owner = self.owner(name)
        if owner not in self._hessians:
            drawn = self._drawn(owner)
            # Inputs that are all zero say nothing of what rounding costs, as for a linear that no token reached.
            self._hessians[owner] = drawn if drawn.diagonal().any() else torch.eye(len(drawn))
        return self._hessians[owner]

    def release(self, name: str) -> None:
        """Let the matrix go that `hessian` gave for a linear; it is made again if it is asked for again."""
        self._hessians.pop(self.owner(name), None)

    def _drawn(self, owner: str) -> Tensor:
        moment, kind = self._moments.get(owner), likeness(owner)
        if kind != owner:
            common = self._common(kind)
            if moment is not None and common is not None:
                drawn = moment.hessian().mul_(moment.count).add_(common, alpha=SHRINK_TOKENS)
                return drawn.div_(moment.count + SHRINK_TOKENS)
            if common is not None:
                return common
        return torch.eye(_inputs(self._linears[owner])) if moment is None else moment.hessian()

    def _common(self, kind: str) -> Tensor | None:
        """Mean over the tokens of all experts of the layer; None if none saw any."""
        if kind not in self._kinds:
            likes = [moment for name, moment in self._moments.items() if likeness(name) == kind]
            total: Tensor | None = None
            for moment in likes:
                part = moment.hessian().mul_(moment.count)
                total = part if total is None else total.add_(part)
            self._kinds[kind] = None if total is None else total.div_(sum(m.count for m in likes))
        return self._kinds[kind]


def likeness(name: str) -> str:
    """What an expert's linear shares with those of the other experts of its layer: its name without the number."""
    head, found, tail = name.partition(".experts.")
    return f"{head}{found}{tail.partition('.')[2]}" if found else name


def _inputs(linear: nn.Module) -> int:
    return int(linear.in_features)  # type: ignore[arg-type]


def pass_through(blocks: Blocks, index: int, flows: Sequence[Flow], linears: Mapping[str, nn.Module]) -> LayerMoments:
    """Take flows through a layer, which has to be placed, and gather the moments of its linears on the way."""
    moments = LayerMoments(linears)
    for flow in flows:
        moments.width = flow.batch.width
        with moments.gathered():  # one at a time: inputs are held until it ends
            blocks.advance(index, [flow])
    return moments


def head_moments(
    blocks: Blocks, flows: Sequence[Flow], head: str | None, linears: Mapping[str, nn.Module]
) -> LayerMoments:
    """Moments of what the head reads at labelled positions, of flows that are past the last layer.

    Args:
        head: the linear that stands for the table that it multiplies by; the others read nothing.
    """
    moments = LayerMoments(linears)
    if head is None:
        return moments
    model = blocks.model
    was = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is was)
    reader = _Reader(was)
    model.set_submodule(name, reader)
    heads = LayerMoments({head: reader})
    try:
        with heads.gathered(), torch.no_grad():
            for flow in flows:
                blocks.logits(flow, flow.hidden.to(blocks.device))
    finally:
        model.set_submodule(name, was)
    moments.take(heads)
    return moments


class _Reader(nn.Module):
    """In the head's place while only its input is wanted: gives one logit."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.in_features, self.weight = head.in_features, head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[..., :1]
