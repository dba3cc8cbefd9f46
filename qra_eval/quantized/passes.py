"""Rows passed forward and backward through a model layer by layer, with what each layer's linears are calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qra_eval.quantized.blocks import Blocks, Flow
from qra_eval.quantized.calibration import LayerMoments, Weighting
from qra_eval.tasks.batches import Batch
from qra_search.evaluator import Progress

SEGMENT = 6
"""Layers of which the first one's input waits on the host: those of a segment then take about as much as all these."""
BACKWARD_WORK = 4
"""Forward passes that a batch takes in a layer backward: run again twice, its gradients, and the moments."""
LABELS = 256
"""Labelled positions whose logits are made at a time."""


def pass_layers(
    blocks: Blocks,
    batches: Sequence[Batch],
    linears: Callable[[int], Mapping[str, nn.Module]],
    weighting: Weighting,
    layers: Sequence[int],
    head: str | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, LayerMoments]]:
    """The moments of the layers asked for, from the last to the first: one pass forward and backward.

    The input of every `SEGMENT`th layer waits on the host, in the dtype that the model is stored in; those between are
    made again when it is their turn. Backward, a layer is run again from its input with gradients, which are taken at
    its linears, and passed on at its input: in memory is one layer, and a batch's activations in it. Between two layers
    no weight is in place.

    Args:
        linears: of a layer, by name, as they stand in the model.
        layers: those wanted; `len(blocks)` stands for the tables.
        head: the table that the model's head multiplies by; the others read nothing.
        progress: called as batches pass, with the work done and all of it, in layers that a batch passes forward.
    """
    generator = torch.Generator().manual_seed(0)
    labelled = max(1, sum(len(batch.targets) for batch in batches))
    first, depth = min(layers), len(blocks)
    inputs: dict[int, list[Tensor]] = {}
    done, total = 0, len(batches) * (depth + BACKWARD_WORK * (1 + depth - first))

    def report(work: int) -> None:
        nonlocal done
        done += work
        if progress is not None:
            progress("pass calibration rows", done, total)

    def advance(layer: int, keep: bool, work: int = 0) -> None:
        if keep:
            inputs[layer] = [flow.hidden.to(blocks.stored) for flow in flows]
        with blocks.place_layer(layer):
            for flow in flows:
                blocks.advance_flow(layer, flow)
                report(work)

    with blocks.cast_outer_modules():
        flows = [blocks.embed_batch(batch) for batch in batches]
    for layer in range(depth):
        advance(layer, layer % SEGMENT == 0 and layer + SEGMENT > first, work=1)
    with blocks.cast_outer_modules():  # no longer: it leaves the room to the quantizing of layers
        of_tables = LayerMoments(linears(depth) if depth in layers else {}, weighting)
        if depth in layers and head is not None:
            _read_head(blocks, flows, of_tables, head)
        gradients, squares = [], []
        for flow in flows:
            gradient, own = _compute_head_gradients(blocks, flow, weighting, generator)
            gradients.append(gradient)
            squares.append(own)
            report(BACKWARD_WORK)
        if depth in layers:
            _weigh_tokens(linears(depth), flows, of_tables, head, torch.stack(squares).sum(0).cpu())
    if depth in layers:
        yield depth, of_tables
    for layer in reversed(range(first, depth)):
        start = layer // SEGMENT * SEGMENT
        if layer not in inputs:
            for flow, hidden in zip(flows, inputs[start], strict=True):
                flow.hidden = hidden.to(blocks.compute)
            for between in range(start, layer):
                advance(between, between > start)
            inputs[layer] = [flow.hidden.to(blocks.stored) for flow in flows]
        moments = LayerMoments(linears(layer) if layer in layers else {}, weighting, labelled)
        with blocks.place_layer(layer):
            for n, flow in enumerate(flows):
                given = inputs[layer][n].to(blocks.devices[layer], blocks.compute).requires_grad_(True)
                with moments.gather(flow.batch.width):
                    output = blocks.run_layer(layer, flow, given)
                    (gradient,) = torch.autograd.grad(output, given, gradients[n].to(output.device))
                gradients[n] = gradient.cpu()
                report(BACKWARD_WORK)
        del inputs[layer]
        if layer in layers:
            yield layer, moments


def _compute_head_gradients(
    blocks: Blocks, flow: Flow, weighting: Weighting, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gradient of the labels' log-likelihood at the last layer, (N, T, H), and its squares at the logits, (V,)."""
    hidden = flow.hidden.to(blocks.device).requires_grad_(True)
    total, squares = torch.zeros_like(hidden), torch.zeros((), device=blocks.device)
    parts = zip(flow.batch.positions.split(LABELS), flow.batch.targets.split(LABELS), strict=True)
    for positions, targets in parts:
        logits = blocks.compute_logits(
            replace(flow, batch=replace(flow.batch, positions=positions)), hidden
        ).float()
        labels = targets if weighting.labels == "rows" else sample_labels(logits.detach(), generator)
        of_logits, own = torch.autograd.grad(
            F.cross_entropy(logits, labels, reduction="sum"), [logits, hidden]
        )
        total += own
        squares = squares + of_logits.square().sum(0)
    return total.cpu(), squares


def sample_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Labels (M,) sampled from logits (M, V) by a generator of the host.

    On a GPU one uniform number a row is sent there and the distribution inverted: logits of a large vocabulary are
    not brought to the host.
    """
    likely = logits.softmax(-1)
    if likely.device.type == "cpu":
        return torch.multinomial(likely, 1, generator=generator).squeeze(1)
    uniform = torch.rand(len(likely), 1, generator=generator).to(likely.device)
    below = likely.cumsum(-1)
    whole = below[:, -1:]  # 1 but for rounding
    return torch.searchsorted(below, uniform * whole).squeeze(1)


def _read_head(blocks: Blocks, flows: Sequence[Flow], moments: LayerMoments, name: str) -> None:
    """Add what the head reads at labelled positions of flows that are past the last layer."""
    model = blocks.model
    own = model.get_output_embeddings()
    place = next(name for name, module in model.named_modules() if module is own)
    reader = _Reader(own)
    model.set_submodule(place, reader)
    try:
        with torch.no_grad():
            for flow in flows:
                blocks.compute_logits(flow, flow.hidden.to(blocks.device))
                moments.update(name, reader.hidden, torch.zeros(len(reader.hidden), device=blocks.device))
    finally:
        model.set_submodule(place, own)


def _weigh_tokens(
    tables: Mapping[str, Any], flows: Sequence[Flow], moments: LayerMoments, head: str | None, squares: Tensor
) -> None:
    """Let each token's row count by how often it is read, as a tuned head writes it, and by its logit's gradients."""
    ids = torch.cat([flow.batch.input_ids[:, : flow.batch.width or None].flatten() for flow in flows]).cpu()
    for name, table in tables.items():
        counts = ids.bincount(minlength=table.out_features).float()
        moments.weigh_tokens(name, [counts, squares] if name == head else [counts])


class _Reader(nn.Module):
    """In the head's place while only its input is wanted, `hidden` (M, in): gives one logit."""

    hidden: Tensor

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.in_features, self.weight = head.in_features, head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        return hidden[..., :1]
