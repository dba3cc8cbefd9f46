"""What training a plan takes at its peak, from the shapes of one step: for memory budgets that must hold while tuning.

The peak is the moment at which the backward pass begins: every activation that it needs is there, and so are the
logits of the labelled positions and their gradient. It holds, in bytes:

- the plan's quantized weights and all that is not searched (its resident bytes without adapters);
- `dequantized`: the largest linear's weight, made for the length of one product, in float32 and in the model's dtype;
- 16 bytes for every adapter weight: float32 value, gradient and two moments of AdamW; 2 more for the rounded copy that
  is multiplied by where the model computes in half precision;
- 24 bytes for every scale and offset, and the largest linear's weight once more, if these are trained along;
- `activations`: what autograd saves, counted tensor by tensor on one and on two rows and drawn out to the batch. With
  checkpointing the inputs of the decoder layers stay, and one layer's activations at a time;
- `logits`: twice, for the gradient is made beside them.

The unquantized weights stay in the checkpoint's files, mapped.

The plan's weights, adapters and scales depend on the plan, and all are sums over its groups: a budget on the peak is
kept as exactly as one on resident bytes. What depends on the rank of the activations is taken at the largest rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qra_eval.costs.sizes import TRAINED_NUMBER
from qra_eval.models.linears import decoder_layers
from qra_eval.tasks.batches import Batch, collate
from qra_eval.tasks.losses import batch_loss, labelled_head
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.space.levels import Level, LevelName
from qra_search.space.memory import UNQUANTIZED_BITS, StorageFormat
from qra_search.space.space import Plan, SearchSpace

ADAPTER_BYTES = 16
"""Of an adapter weight in training: value, gradient and two moments, float32."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step that do not depend on the plan; see the module's docstring.

    Attributes:
        adapter_bits: bits that training takes for each adapter weight.
        rows, tokens: of the largest batch: rows, and tokens of each.
        trained_numbers: how many scales and offsets of a linear are trained along, by level and shape.
    """

    dequantized: int
    activations: int
    logits: int
    adapter_bits: int
    rows: int
    tokens: int
    trained_numbers: Callable[[LevelName, int, int], int]

    @property
    def fixed(self) -> int:
        """All of them together."""
        return self.dequantized + self.activations + self.logits

    def space(self, resident: SearchSpace) -> SearchSpace:
        """The same space with the bytes of plans counted at the peak of their training."""
        return SearchSpace(
            groups=resident.groups,
            bits=[self._trained(level) for level in resident.levels],
            ranks=resident.ranks,
            fixed_bytes=resident.fixed_bytes + self.fixed,
            adapter_bits=self.adapter_bits,
        )

    def _trained(self, level: Level) -> Level:
        """A level whose format counts what training its scales takes."""
        if level.name == UNQUANTIZED_BITS:
            return level
        return replace(level, format=_InTraining(level.format, self.trained_numbers, level.name))


@dataclass(frozen=True)
class _InTraining:
    """A format with what the scales and offsets of a weight take while they are trained."""

    stored: StorageFormat
    trained_numbers: Callable[[LevelName, int, int], int]
    level: LevelName

    def bytes(self, out_features: int, in_features: int) -> int:
        numbers = self.trained_numbers(self.level, out_features, in_features)
        return self.stored.bytes(out_features, in_features) + TRAINED_NUMBER * numbers


def step_memory(tuner: FineTuner) -> StepMemory:
    """Count what a training step of an evaluator holds, by one forward pass of one row and one of two."""
    space, item = tuner.space, tuner.quantized.dtype.itemsize
    batches = tuner.batches(max(1, tuner.evaluation.steps), 0)
    rows, tokens = max((b.input_ids.shape for b in batches), key=lambda shape: shape[0] * shape[1])
    labels = max(len(b.targets) for b in batches)
    linears = [linear for group in space.groups if not group.is_embedding for linear in group.linears]
    head = 2 * labels * tuner.model.get_output_embeddings().weight.shape[0] * item
    layers, outside = _saved_by_batch(tuner, rows, tokens)
    wider = len(linears) * rows * tokens * item * (max(space.ranks) - min((r for r in space.ranks if r), default=0))
    if tuner.settings.gradient_checkpointing and layers:
        inputs = len(layers) * rows * tokens * tuner.model.config.get_text_config().hidden_size * item
        # The logits are gone when the first layer's activations are made again.
        activations = inputs + outside + max(0, max(layers) + wider // len(layers) - head)
    else:
        activations = outside + sum(layers) + wider
    shapes, quantized = [(m.out_features, m.in_features) for m in linears], tuner.quantized
    scales = any(quantized.trained_numbers(b, *shape) for shape in shapes for b in quantized.levels)
    largest = max(out * inputs for out, inputs in shapes)
    return StepMemory(
        dequantized=largest * (4 + item + (item if scales else 0)),
        activations=activations,
        logits=head,
        adapter_bits=8 * (ADAPTER_BYTES + (item if item < 4 else 0)),
        rows=rows,
        tokens=tokens,
        trained_numbers=quantized.trained_numbers,
    )


def _saved_by_batch(tuner: FineTuner, rows: int, tokens: int) -> tuple[list[int], int]:
    """Bytes that a batch saves for its backward pass: of each decoder layer, and of all else but the logits."""
    space = tuner.space
    ranks = [r for r in space.ranks if r > 0]
    if not ranks:
        return [], 0
    settings = tuner.settings
    longest = max(tuner.rows("calibration", tuner.trained_rows), key=len)
    plan = Plan(
        tuple((group.bits or space.bits)[0] for group in space.groups),
        tuple(min(group.ranks or space.ranks, key=lambda rank: abs(rank - ranks[0])) for group in space.groups),
    )
    tuner.apply(plan, 0)
    with tuner.switcher.as_stored(plan) as model:
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        one, two = (saved_bytes(model, collate([longest] * n).to(tuner.device)) for n in (1, 2))
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    tuner.switcher.unquantize()  # what comes first, the sensitivities, has no plan in place
    # The difference is a row's: what does not grow with rows, such as weights, falls out.
    stretch = rows * tokens / len(longest)
    row = {part: max(0, two[part] - one[part]) for part in two}
    return [int(stretch * size) for part, size in row.items() if part], int(stretch * row.get("", 0))


def saved_bytes(model: Any, batch: Batch) -> dict[str, int]:
    """Bytes that autograd saves in a forward pass and its loss: by decoder layer, and all else but logits under ``.

    Each storage counts once, where it was first saved; the model's own tensors do not count.
    """
    path = decoder_layers(model)
    layers = dict(model.get_submodule(path).named_children()) if path is not None else {}
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    found: dict[str, int] = {name: 0 for name in ("", *layers)}
    where = [""]

    def pack(tensor: Tensor) -> None:  # nothing passes back, and a tensor kept by what made it would never go
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            own.add(storage.data_ptr())
            kept.append(storage)  # else its address could be given to another
            found[where[-1]] += storage.nbytes()

    kept: list[torch.UntypedStorage] = []
    handles = []
    for name, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(lambda module, args, name=name: where.append(name)))
        handles.append(layer.register_forward_hook(lambda module, args, output: where.pop() and None))
    model.train()
    try:
        with labelled_head(model) as head, torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
            batch_loss(model, head, batch)
    finally:
        model.eval()
        for handle in handles:
            handle.remove()
    vocabulary = model.get_output_embeddings().weight
    found[""] = max(0, found[""] - len(batch.targets) * vocabulary.shape[0] * vocabulary.element_size())
    return found
