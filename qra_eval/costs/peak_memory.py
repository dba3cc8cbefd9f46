"""A space whose plans take what training them takes at its peak: for memory budgets that must hold while tuning.

The peak is that of `qra_eval.costs.phases`: the plan's weights and all that is not searched; of every adapter weight
its value and the moments of AdamW; of every scale and offset that is trained along 24 bytes, and with them the largest
linear's weight once more; and what a forward and a backward pass make, gradients among it, counted on fake tensors with
the largest rank at every linear. The unquantized weights stay in the checkpoint's files, mapped.

The plan's weights, adapters and scales are sums over its groups: a budget on the peak is kept as exactly as one on
resident bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qra_eval.costs.sizes import TRAINED_NUMBER, Sizes
from qra_eval.tasks.batches import bucketed
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.errors import BadInput
from qra_search.space.levels import Level, LevelName
from qra_search.space.memory import UNQUANTIZED_BITS, StorageFormat
from qra_search.space.space import SearchSpace


@dataclass(frozen=True)
class _InTraining:
    """A format with what the scales and offsets of a weight take while they are trained."""

    stored: StorageFormat
    trained_numbers: Callable[[LevelName, int, int], int]
    level: LevelName

    def bytes(self, out_features: int, in_features: int) -> int:
        numbers = self.trained_numbers(self.level, out_features, in_features)
        return self.stored.bytes(out_features, in_features) + TRAINED_NUMBER * numbers


def peak_space(tuner: FineTuner) -> SearchSpace:
    """The space of a tuner with the bytes of plans counted at the peak of their training; no weight is needed.

    Raises:
        BadInput: the model brings its own code, which is not run on fake tensors.
    """
    model = tuner.quantized
    if model.loaded.trust_remote_code:
        raise BadInput(
            "search.memory_kind is peak, which is not counted for a model with code of its own: leave it out"
        )
    sizes = Sizes(tuner, None, None, range(len(model.blocks)))
    resident, passes = model.space, sizes.reordered(sizes.wide)
    if sizes.rank:
        longest = max(1, tuner.evaluation.steps, tuner.finetune_steps)
        held_out = bucketed(tuner.rows("validation", tuner.evaluation.validation_rows), 2 * tuner.settings.batch_size)
        step = sizes.stretched("training_step", tuner.batches(longest, 0))
        passes += max(step, sizes.stretched("held_out", held_out))
    if any(model.trained_numbers(level, *shape) for shape in sizes.shapes for level in model.levels):
        passes += sizes.largest * sizes.wide

    def trained(level: Level) -> Level:
        if level.name == UNQUANTIZED_BITS:
            return level
        return replace(level, format=_InTraining(level.format, model.trained_numbers, level.name))

    return SearchSpace(
        groups=resident.groups, bits=[trained(level) for level in resident.levels], ranks=resident.ranks,
        fixed_bytes=resident.fixed_bytes + passes, adapter_bits=8 * sizes.adapter_bytes,
    )  # fmt: skip
