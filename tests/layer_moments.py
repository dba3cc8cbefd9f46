"""The moments of each layer's inputs, for tests of what is calibrated on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.calibration import LayerMoments, pass_through
from qra_eval.tasks.batches import Batch


def input_moments(
    blocks: Blocks, linears: Mapping[str, nn.Module], layer_of: Mapping[str, int], batches: Sequence[Batch]
) -> Iterator[tuple[list[str], LayerMoments]]:
    """The names and moments of each layer's linears, layer by layer."""
    with blocks.running():
        flows = [blocks.enter(batch) for batch in batches]
        for layer in sorted(set(layer_of.values())):
            names = [name for name, at in layer_of.items() if at == layer]
            with blocks.placed(layer):
                moments = pass_through(blocks, layer, flows, {name: linears[name] for name in names})
            yield names, moments
