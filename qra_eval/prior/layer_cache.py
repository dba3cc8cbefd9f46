"""Forward passes that begin at a layer: what the layers before it put out is kept, and they are left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qra_eval.models.linears import decoder_layers
from qra_eval.tasks.batches import Batch
from qra_eval.tasks.losses import labelled_head, labelled_logits


class LayerCache:
    """The outputs of every decoder layer for one batch, of a model as it is now, and its predictions.

    Changing a linear of layer l leaves layers 0 to l - 1 as they were, so a pass from l on gives the same predictions
    as a whole one: half the cost where l is any layer with equal chance.

    Args:
        model: in evaluation mode while it is used.

    Attributes:
        reference: float (M, vocabulary), log-probabilities at the labelled positions of the unchanged model.
        layers: number of layers; 0 where the model has no list of them, and every pass is a whole one.
    """

    def __init__(self, model: Any, batch: Batch):
        self.model, self.batch = model, batch
        path = decoder_layers(model)
        self._layers = list(model.get_submodule(path)) if path is not None else []
        self._outputs: list[Any] = []
        handles = [
            layer.register_forward_hook(lambda module, args, output: self._outputs.append(output))
            for layer in self._layers
        ]
        try:
            self.reference = self.log_probabilities(None)
        finally:
            for handle in handles:
                handle.remove()
        self.layers = len(self._layers)

    def share(self, layer: int | None) -> float:
        """Share of a whole pass that one from a layer on takes."""
        return 1.0 if not self.layers or layer is None else 1.0 - layer / self.layers

    @torch.no_grad()
    def log_probabilities(self, layer: int | None) -> Tensor:
        """Log-probabilities (M, vocabulary), float32, at the labelled positions; None: by a whole pass."""
        self.model.eval()
        with labelled_head(self.model) as head, self._from(layer or 0):
            return labelled_logits(self.model, head, self.batch).float().log_softmax(-1)

    def divergence(self, layer: int | None) -> float:
        """KL divergence in nats a labelled token of the model as it is now from the unchanged one."""
        changed = self.log_probabilities(layer)
        return max(float((self.reference.exp() * (self.reference - changed)).sum(-1).mean()), 0.0)

    @contextmanager
    def _from(self, layer: int) -> Iterator[None]:
        skipped = list(zip(self._layers[:layer], self._outputs, strict=False))
        for module, output in skipped:
            module.forward = lambda *args, output=output, **kwargs: output
        try:
            yield
        finally:
            for module, _ in skipped:
                del module.forward
