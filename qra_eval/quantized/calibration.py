"""What a layer's linears are calibrated on: moments of their inputs, and what errors at their outputs cost in loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from qra_backends import SecondMoment
from torch import Tensor, nn
from torch.nn import functional as F

from qra_eval.quantized.blocks import BatchFlow, Blocks
from qra_eval.tasks.batches import Batch
from qra_search.evaluator import Progress

SHRINK_TOKENS = 256
"""An expert's figures are drawn towards those of all experts of its layer as by so many tokens: enough to mend one that
the router rarely chose, and little beside the thousands that others see."""
TOKEN_FLOOR = 0.3
"""What the row of a token counts that no calibration row has; a token of mean use counts one more (docs/trellis.md)."""


@dataclass(frozen=True)
class Weighting:
    """How much tokens and outputs count when the codes of a weight are chosen.

    GuidedQuant (arXiv 2505.07004) weighs tokens by the mean squared gradient at the linear's output; so few rows as
    calibrate leave it too few tokens, which a share of the plain moment mends.

    Attributes:
        mix: share of the inputs' plain second moment; the rest is that weighted by the tokens' squared gradients.
        power: an output's errors count by its mean squared gradient to this power.
        labels: whose gradients are taken; `model` draws them from the prediction.
    """

    mix: float
    power: float
    labels: Literal["rows", "model"] = "model"


WEIGHTINGS = {"outputs": Weighting(mix=1.0, power=0.0), "loss": Weighting(mix=0.5, power=1.0)}
"""Weightings by the value of `quantization.calibration`."""


class LayerMoments:
    """Moments of what each linear of a layer reads, (in, in), and the mean squared gradients of its outputs, (out,).

    Linears that read the same tensor (q, k, v; gate, up) share one moment, in which a token counts by its squared
    gradients at all of their outputs. Padding up to the longest row of a batch counts in the plain share: it is little,
    since batches hold rows of similar length. An expert's figures are drawn towards those of all experts of its layer,
    by `SHRINK_TOKENS`; a linear that no token reached, nor another expert's, gets the identity: rounding to nearest.

    Attributes:
        gradient_squares: expected squared norm of the loss gradient by each linear's weight: labels are drawn from the
            model, so the gradients of tokens are taken to be independent, and their squared norms add up.
    """

    def __init__(self, linears: Mapping[str, Any], weighting: Weighting, labelled: int = 1):
        self._linears, self._weighting, self._labelled = linears, weighting, labelled
        self.gradient_squares: dict[str, Tensor] = {}
        self._moments: dict[str, SecondMoment] = {}
        self._traces: dict[str, tuple[Any, Any]] = {}
        self._squares: dict[str, Tensor] = {}
        self._token_weights: dict[str, Tensor] = {}
        self._shared: dict[str, str] = {}
        self._read: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._hessians: dict[str, Tensor] = {}
        self._owner_kinds: dict[str, str] = {}
        self._common: dict[tuple[str, str], Any] = {}

    # -- gathering -----------------------------------------------------------------------------
    @contextmanager
    def gather(self, width: int) -> Iterator[None]:
        """Count what linears read, of each row so many tokens (0: all), and gradients that come to their outputs."""
        handles = [linear.register_forward_hook(self._make_hook(n)) for n, linear in self._linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for owner, (_, x, cost) in self._read.items():
            if width and x.dim() == 3:
                x, cost = x[:, :width], cost.view(x.shape[:2])[:, :width]
            self.update(owner, x.reshape(-1, x.shape[-1]), cost.reshape(-1))
        self._read.clear()

    def _make_hook(self, name: str) -> Any:
        def read(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            given, x = args[0], args[0].detach()  # a hook that held its own graph would hold it for ever
            owner = next((owner for owner, (other, *_) in self._read.items() if other is given), name)
            if owner == name:
                self._read[name] = (given, x, torch.zeros(x.shape[:-1].numel(), device=x.device))
            self._shared[name], self._owner_kinds[get_expert_kind(name)] = owner, get_expert_kind(owner)
            if output.requires_grad:
                output.register_hook(lambda gradient: self._accumulate(name, x, gradient))

        return read

    def _accumulate(self, name: str, x: Tensor, gradient: Tensor) -> None:
        squares = gradient.reshape(-1, gradient.shape[-1]).float().square()
        of_tokens, norms = squares.sum(1), x.reshape(-1, x.shape[-1]).float().square().sum(1)
        self.gradient_squares[name] = self.gradient_squares.get(name, 0.0) + of_tokens @ norms
        self._read[self.find_moments_owner(name)][2].add_(of_tokens)
        self._squares[name] = squares.sum(0).add_(self._squares.get(name, 0.0))

    def update(self, owner: str, x: Tensor, cost: Tensor) -> None:
        """Add inputs (T, in) with the squared gradients (T,) of their tokens.

        Both shares of the moment have the same trace, as far as inputs were seen: neither drowns the other.
        """
        mix, weights = self._weighting.mix, None
        if mix < 1:
            norms = x.float().square().sum(1)
            plain, weighted = self._traces.get(owner, (0.0, 0.0))
            self._traces[owner] = plain, weighted = plain + norms.sum(), weighted + norms @ cost
            weights = mix + (1 - mix) * cost * (plain / weighted).nan_to_num(0.0, posinf=0.0)
        self._moments.setdefault(owner, SecondMoment()).update(x, weights)

    def weigh_tokens(self, name: str, uses: Sequence[Tensor]) -> None:
        """Let a table's rows count by the mean of some figures of their tokens' use, (vocabulary,), alike in sum; the
        square root and the floor spare what a task's few tokens leave out (docs/trellis.md)."""
        mean = torch.stack([use / use.mean().clamp(min=1e-30) for use in uses]).mean(0)
        self._token_weights[name] = mean.sqrt() + TOKEN_FLOOR

    # -- what was gathered ---------------------------------------------------------------------
    def find_moments_owner(self, name: str) -> str:
        return self._shared.get(name, name)

    def count_tokens(self, name: str) -> int:
        moment = self._moments.get(self.find_moments_owner(name))
        return 0 if moment is None else moment.count

    def compute_hessian(self, name: str) -> Tensor:
        """Mean of x xᵀ, (in, in), float32; the same tensor for linears that read the same, until `release_hessian`."""
        owner = self.find_moments_owner(name)
        if owner not in self._hessians:
            mean = self._shrink_to_mean(owner, self._get_second_moment)
            # Inputs that are all zero say nothing of what rounding costs, as for a linear that no token reached.
            if mean is None or not mean.diagonal().any():
                mean = torch.eye(self._linears[owner].in_features)
            self._hessians[owner] = mean
        return self._hessians[owner]

    def release_hessian(self, name: str) -> None:
        self._hessians.pop(self.find_moments_owner(name), None)

    def compute_output_weights(self, name: str) -> Tensor | None:
        """What a squared error of each output costs, (out,), up to a factor; None if all count the same."""
        if not self._weighting.power:
            return None
        if name in self._token_weights:
            return self._token_weights[name]
        weights = self._shrink_to_mean(name, self._get_mean_squares)
        return None if weights is None else weights.pow(self._weighting.power)

    def estimate_damage(
        self, name: str, change: Tensor, rows: Tensor | None = None, weight: Any = None
    ) -> float:
        """Half the mean squared change of the log-likelihood of a label, if a weight changes by so much, (out, in).

        Of the gradients at the outputs only mean squares are known, those of tokens and those of outputs. If the
        change (n, in) is that of some `rows` (n,) alone, others suffer in proportion to the squares of their `weight`.
        """
        if name not in self._squares:
            return 0.0
        moment, squares = self._moments[self.find_moments_owner(name)], self._squares[name]
        change = change.to(squares.device)
        share = 1.0
        errors = (change @ self.compute_hessian(name).to(change.device)).mul_(change).sum(1)
        if rows is not None:
            powers = weight.to(squares.device).float().square().sum(1).mul_(squares)
            share = float(powers[rows].sum() / powers.sum().clamp(min=1e-30))
            squares = squares[rows]
        return 0.5 * float(errors @ squares) / max(share * moment.mean_weight * self._labelled, 1e-30)

    def _get_second_moment(self, name: str) -> Tensor | None:
        return self._moments[name].compute_hessian() if name in self._moments else None

    def _get_mean_squares(self, name: str) -> Tensor | None:
        return self._squares[name] / self.count_tokens(name) if name in self._squares else None

    def _shrink_to_mean(self, name: str, mean_of: Callable[[str], Tensor | None]) -> Tensor | None:
        """A linear's mean; an expert's is drawn towards that over the tokens of all experts of its layer."""
        mean, kind = mean_of(name), get_expert_kind(name)
        if kind == name:
            return mean
        if mean_of == self._get_second_moment:
            kind = self._owner_kinds.get(kind, kind)
        key = mean_of.__name__, kind
        if key not in self._common:
            self._common[key] = self._average_over_experts(kind, mean_of)
        common = self._common[key]
        if mean is None or common is None:
            return common
        tokens = self.count_tokens(name)
        return mean.mul_(tokens).add_(common, alpha=SHRINK_TOKENS).div_(tokens + SHRINK_TOKENS)

    def _average_over_experts(self, kind: str, mean_of: Callable[[str], Tensor | None]) -> Tensor | None:
        total, tokens = None, 0
        for name in (n for n in self._linears if get_expert_kind(n) == kind):
            mean = mean_of(name)
            if mean is not None:
                part = mean.mul_(self.count_tokens(name))
                total, tokens = part if total is None else total.add_(part), tokens + self.count_tokens(name)
        return None if total is None else total.div_(tokens)


def get_expert_kind(name: str) -> str:
    """The name of an expert's linear without the expert's number: alike for all experts of a layer."""
    head, found, tail = name.partition(".experts.")
    return f"{head}{found}{tail.partition('.')[2]}" if found else name


SEGMENT_LAYERS = 6
"""Layers of which the first one's input waits on the host: those of a segment then take about as much as all these."""
MAX_WAITING_BYTES = 2 << 30
"""If the inputs of all layers take at most so much, all of them wait: no layer runs again, a fifth of the work."""
FORWARD_STAGE, BACKWARD_STAGE = "calibrate, forward", "calibrate, backward"
"""Stages of a pass, which differ in what a layer takes."""
LABELS_AT_ONCE = 256
"""Labelled positions whose logits are made at a time."""


def choose_segment_length(input_bytes: int) -> int:
    return SEGMENT_LAYERS if input_bytes > MAX_WAITING_BYTES else 1


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

    The input of every layer, or of each segment's first, waits on the host, in the dtype that the model is stored in;
    those between are made again when it is their turn. Backward, a layer is run again from its input with gradients,
    which are taken at its linears, and passed on at its input: in memory is one layer, and a batch's activations in it.
    Between two layers no weight is in place.

    Args:
        linears: of a layer, by name, as they stand in the model.
        layers: those wanted; `len(blocks)` stands for the tables.
        head: the table that the model's head multiplies by; the others read nothing.
    """
    generator = torch.Generator().manual_seed(0)
    labelled = max(1, sum(len(batch.targets) for batch in batches))
    first, depth = min(layers), len(blocks)
    inputs: dict[int, list[Tensor]] = {}
    totals = {FORWARD_STAGE: len(batches) * depth, BACKWARD_STAGE: len(batches) * (1 + depth - first)}
    done = Counter[str]()

    def report_pass(stage: str) -> None:
        done[stage] += 1
        if progress is not None:
            progress(stage, done[stage], totals[stage])

    def advance_flows(layer: int, keep: bool, stage: str = "") -> None:
        if keep:
            inputs[layer] = [flow.hidden.to(blocks.stored) for flow in flows]
        with blocks.place_layer(layer):
            for flow in flows:
                blocks.advance_flow(layer, flow)
                if stage:
                    report_pass(stage)

    with blocks.cast_outer_modules():
        flows = [blocks.embed_batch(batch) for batch in batches]
    segment = choose_segment_length(
        depth * sum(flow.hidden.numel() for flow in flows) * blocks.stored.itemsize
    )
    for layer in range(depth):
        advance_flows(layer, layer % segment == 0 and layer + segment > first, FORWARD_STAGE)
    with blocks.cast_outer_modules():  # no longer: it leaves the room to the quantizing of layers
        of_tables = LayerMoments(linears(depth) if depth in layers else {}, weighting)
        gradients, squares = [], []
        for flow in flows:
            gradient, own, read = _compute_head_gradients(blocks, flow, weighting, generator)
            gradients.append(gradient)
            squares.append(own)
            if depth in layers and head is not None:
                of_tables.update(head, read, torch.zeros(len(read), device=blocks.device))
            report_pass(BACKWARD_STAGE)
        if depth in layers:
            _weigh_tokens(linears(depth), flows, of_tables, head, torch.stack(squares).sum(0).cpu())
    if depth in layers:
        yield depth, of_tables
    for layer in reversed(range(first, depth)):
        start = layer // segment * segment
        if layer not in inputs:
            for flow, hidden in zip(flows, inputs[start], strict=True):
                flow.hidden = hidden.to(blocks.compute)
            for between in range(start, layer):
                advance_flows(between, between > start)
            inputs[layer] = [flow.hidden.to(blocks.stored) for flow in flows]
        moments = LayerMoments(linears(layer) if layer in layers else {}, weighting, labelled)
        with blocks.place_layer(layer):
            for n, flow in enumerate(flows):
                given = inputs[layer][n].to(blocks.device, blocks.compute).requires_grad_(True)
                with moments.gather(flow.batch.width):
                    output = blocks.run_layer(layer, flow, given)
                    (gradient,) = torch.autograd.grad(output, given, gradients[n].to(output.device))
                gradients[n] = gradient.cpu()
                report_pass(BACKWARD_STAGE)
        del inputs[layer]
        if layer in layers:
            yield layer, moments


def _compute_head_gradients(
    blocks: Blocks, flow: BatchFlow, weighting: Weighting, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the labels' log-likelihood at the last layer, (N, T, H), its squares at the logits, (V,), and what
    the head reads at labelled positions, (M, H)."""
    hidden, read = flow.hidden.to(blocks.device).requires_grad_(True), list[Tensor]()
    total, squares = torch.zeros_like(hidden), torch.zeros((), device=blocks.device)
    parts = zip(
        flow.batch.positions.split(LABELS_AT_ONCE), flow.batch.targets.split(LABELS_AT_ONCE), strict=True
    )
    head = blocks.model.get_output_embeddings()
    with head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach().flatten(0, -2))):
        for positions, targets in parts:
            part = replace(flow, batch=replace(flow.batch, positions=positions))
            logits = blocks.compute_logits(part, hidden).float()
            labels = targets if weighting.labels == "rows" else sample_labels(logits.detach(), generator)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            of_logits, own = torch.autograd.grad(loss, [logits, hidden])
            total += own
            squares = squares + of_logits.square().sum(0)
    return total.cpu(), squares, torch.cat(read)


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


def _weigh_tokens(
    tables: Mapping[str, Any],
    flows: Sequence[BatchFlow],
    moments: LayerMoments,
    head: str | None,
    squares: Tensor,
) -> None:
    """Let each token's row count by how often it is read, as a tuned head writes it, and by its logit's gradients."""
    ids = torch.cat([flow.batch.input_ids[:, : flow.batch.width or None].flatten() for flow in flows]).cpu()
    for name, table in tables.items():
        counts = ids.bincount(minlength=table.out_features).float()
        moments.weigh_tokens(name, [counts, squares] if name == head else [counts])
