"""The moments of each layer's inputs, for tests of what is calibrated on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.calibration import WEIGHTINGS, LayerMoments, Weighting
from qra_eval.quantized.passes import pass_layers
from qra_eval.tasks.batches import Batch


def input_moments(
    blocks: Blocks,
    linears: Mapping[str, nn.Module],
    layer_of: Mapping[str, int],
    batches: Sequence[Batch],
    weighting: Weighting = WEIGHTINGS["outputs"],
) -> Iterator[tuple[list[str], LayerMoments]]:
    """The names and moments of each layer's linears, from the last layer to the first."""

    def of_layer(layer: int) -> dict[str, nn.Module]:
        return {name: linears[name] for name, at in layer_of.items() if at == layer}

    for layer, moments in pass_layers(blocks, batches, of_layer, weighting, sorted(set(layer_of.values()))):
        yield list(of_layer(layer)), moments
