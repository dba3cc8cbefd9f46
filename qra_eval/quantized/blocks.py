"""A model run one decoder layer at a time, so that no more than a layer's weights are on the device at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.models.device import release_freed_memory, send_tensor
from qra_eval.models.linears import find_decoder_layers
from qra_eval.tasks.batches import Batch, compute_logits, wrap_head

Forward = Callable[..., Any]


@dataclass
class BatchFlow:
    """A batch on its way through the layers.

    Attributes:
        hidden: (N, T, H), the input of the layer that comes next; waits on the host.
        calls: positional and named arguments that the model gives each layer beside the hidden states.
    """

    batch: Batch
    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class Blocks:
    """The decoder layers of a causal language model, in their order.

    The model's own forward makes what each layer is called with (masks, positions), and what comes after the last
    one: in both, stubs stand in the layers' places. A layer whose weights are on the host, or in another dtype than
    the arithmetic, is put in place for the length of its turn (`place_layer`), and is the very same afterwards.

    Args:
        model: frozen; all but what lies in the layers, and searched tables, is on `device`.
        compute: dtype of the arithmetic; the model's own, `stored`, may be cast to it meanwhile.
    """

    def __init__(self, model: Any, device: torch.device, compute: torch.dtype):
        path = find_decoder_layers(model)
        self.model, self.device, self.compute = model, device, compute
        self.stored: torch.dtype = model.dtype
        self.layers: list[nn.Module] = list(model.get_submodule(path))
        self._tuple: bool | None = None

    def __len__(self) -> int:
        return len(self.layers)

    # -- weights in place ----------------------------------------------------------------------
    @contextmanager
    def place_layer(self, index: int) -> Iterator[None]:
        """A layer's tensors on the device, parameters in the dtype of the arithmetic; then the very same ones again."""
        with move_tensors(self.layers[index], self.device, self.compute):
            yield
        release_freed_memory(self.device)

    @contextmanager
    def cast_outer_modules(self) -> Iterator[None]:
        """All that lies outside the layers in the dtype of the arithmetic, and the model in evaluation mode."""
        inside = {id(p) for layer in self.layers for p in layer.parameters()}
        own, kind = self.model.dtype, self.device.type
        outside = [p for p in self.model.parameters() if id(p) not in inside]
        # Searched tables wait on the host.
        rest = [p for p in outside if p.dtype == own or p.device.type != kind]
        self.model.eval()
        kept = [p.data for p in rest]
        try:
            for parameter in rest:
                dtype = self.compute if parameter.dtype == own else parameter.dtype
                parameter.data = send_tensor(parameter.data, self.device).to(dtype)
            yield
        finally:
            for parameter, data in zip(rest, kept, strict=True):
                parameter.data = data

    @contextmanager
    def stream_layers(self) -> Iterator[None]:
        """Passes of the model itself, each layer put in place when its turn comes; for passes without gradients."""

        def move_inputs(index: int, forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                # Memory is not released as by `place_layer`: this runs for every token that is written.
                with move_tensors(self.layers[index], self.device, self.compute):
                    return forward(*args, **kwargs)

            return run

        with self.cast_outer_modules(), self._replace_forwards(move_inputs):
            yield

    # -- a batch through the layers ------------------------------------------------------------
    @torch.no_grad()
    def embed_batch(self, batch: Batch) -> BatchFlow:
        batch = batch.to(self.device)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[Tensor] = []

        def record(index: int, forward: Forward) -> Forward:
            def run(*args: Any, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs.pop("hidden_states")
                if self._tuple is None:  # in what form layers return their output is seen on the first
                    with self.place_layer(index):
                        self._tuple = isinstance(forward(hidden, *args[1:], **kwargs), tuple)
                first.append(hidden)
                calls.append((args[1:], kwargs))
                return self._wrap_output(hidden)

            return run

        with self._replace_forwards(record):
            self.model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=1)
        return BatchFlow(batch, first[0].cpu(), calls)

    def run_layer(self, index: int, flow: BatchFlow, hidden: Tensor | None = None) -> Tensor:
        """What a layer, which has to be placed, makes of a flow's hidden states (N, T, H), or of others."""
        args, kwargs = flow.calls[index]
        given = flow.hidden.to(self.device) if hidden is None else hidden
        output = self.layers[index](given, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def advance_flow(self, index: int, flow: BatchFlow) -> None:
        """Take a flow through a layer, which has to be placed."""
        flow.hidden = self.run_layer(index, flow).cpu()

    def compute_logits(self, flow: BatchFlow, hidden: Tensor) -> Tensor:
        """Logits (M, vocabulary) at the labelled positions, of what the last layer put out."""
        last = len(self) - 1

        def make_stub(index: int, forward: Forward) -> Forward:
            return lambda *args, **kwargs: self._wrap_output(
                hidden if index == last else args[0] if args else kwargs["hidden_states"]
            )

        with self._replace_forwards(make_stub), wrap_head(self.model) as head:
            return compute_logits(self.model, head, flow.batch)

    def _wrap_output(self, hidden: Tensor) -> Any:
        return (hidden,) if self._tuple else hidden

    @contextmanager
    def _replace_forwards(self, make: Callable[[int, Forward], Forward]) -> Iterator[None]:
        """Every layer's forward replaced, for as long as the context lasts."""
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                own = vars(layer).get("forward")  # an accelerator's hook may have replaced the class's
                if own is None:
                    stack.callback(delattr, layer, "forward")
                else:
                    stack.callback(setattr, layer, "forward", own)
                layer.forward = make(index, layer.forward)  # type: ignore[method-assign]
            yield


@contextmanager
def move_tensors(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """A module's tensors on a device, floating parameters in a dtype; then the very same tensors again."""
    with ExitStack() as stack:
        for tensor in [*module.parameters(), *module.buffers()]:
            wide = tensor.is_floating_point() and isinstance(tensor, nn.Parameter)
            wanted = dtype if wide else tensor.dtype
            if tensor.device != device or tensor.dtype != wanted:
                stack.callback(setattr, tensor, "data", tensor.data)
                tensor.data = send_tensor(tensor.data, device).to(wanted)
        yield
