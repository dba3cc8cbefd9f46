"""A model made of nothing but shapes: its own code runs on it, and what that would hold in memory is counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from qra_backends.modules import apply_dequantized
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qra_eval.costs.meter import DEQUANTIZE_BYTES, MemoryCounter
from qra_eval.models.embeddings import ROWS, install_tables
from qra_eval.models.linears import find_linears, normalise
from qra_eval.models.loaded import enable_checkpointing
from qra_eval.quantized import adapters
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.calibration import WEIGHTINGS, LayerMoments, get_expert_kind
from qra_eval.tasks.batches import Batch, compute_batch_loss, wrap_head

CPU = torch.device("cpu")
Work = tuple[tuple[tuple[int, int], int], ...]
KEPT = 64
"""Number of sketches that are cached, the last used ones."""


class Sketch:
    """A causal language model of fake tensors with a quantized base and an adapter of one rank at every linear.

    Args:
        config: of transformers.
        dtype: of the weights and of the arithmetic.
        tables: whether embeddings and head are quantized.
        rank: of the adapters, 0 for none.
        dropout: of their inputs in training.
        checkpointing: whether layers compute their activations again in the backward pass.
        layers: how many it has.
        work: bytes of dequantizing a weight of a shape, beside the result; of a table: so many rows of it as the head
            takes at a time. `DEQUANTIZE_BYTES` of a shape that is not there.
    """

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        *,
        tables: bool,
        rank: int,
        checkpointing: bool,
        dropout: float = 0.0,
        layers: int,
        work: Work = (),
    ):
        from transformers import AutoModelForCausalLM

        try:
            from transformers.initialization import no_init_weights
        except ImportError:  # before transformers 5
            from transformers.modeling_utils import no_init_weights  # type: ignore[attr-defined,no-redef]
        self._mode = FakeTensorMode()
        with (
            self._mode,
            no_init_weights(),
        ):  # some are drawn by looking at values, which fake tensors have not
            config = shorten_config(config, layers)
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=config._attn_implementation
            )
            model.requires_grad_(False)
            normalise(model)
            if tables:
                for table in install_tables(model, _Packed).values():  # type: ignore[arg-type]
                    table.set_base(module=_Packed(table.shape, dict(work), dtype, min(ROWS, table.shape[0])))
            found = find_linears(model)
            self.layer_of = {f.name: f.layer for f in found}
            self.model, self.dtype = model, dtype
            self.wrapped = adapters.wrap_linears(model, list(self.layer_of))
            for wrapper in self.wrapped.values():
                shape = (wrapper.out_features, wrapper.in_features)
                wrapper.set_base(module=_Packed(shape, dict(work), dtype, wrapper.out_features))
                if rank:
                    A = torch.zeros(rank, wrapper.in_features)
                    wrapper.set_adapter(A, torch.zeros(wrapper.out_features, rank), 1.0, dropout)
            if checkpointing:
                enable_checkpointing(model)

    @cache  # noqa: B019 - sketches are few, and kept on purpose
    def count_pass_bytes(self, rows: int, tokens: int, labels: int, *, training: bool) -> int:
        """Peak bytes of a forward pass and its loss; in training also of the backward pass, with the gradients of the
        adapters among them."""
        with self._measure_memory() as meter, torch.set_grad_enabled(training):
            self.model.train(training)
            with wrap_head(self.model) as head:
                loss = compute_batch_loss(self.model, head, self._make_batch(rows, tokens, labels))
                if training:
                    loss.backward()
            del loss
            self.model.zero_grad()
        return meter.peak

    @cache  # noqa: B019
    def count_calibration_bytes(self, layer: int, rows: int, tokens: int) -> int:
        """Peak bytes of a layer's pass forward and backward to its input while its moments are gathered, these among
        them.

        Those of experts are left out: which tokens an expert sees is not known.
        """
        blocks, linears = self._remove_quantization(layer)
        linears = {name: linear for name, linear in linears.items() if get_expert_kind(name) == name}
        with self._measure_memory() as meter:
            flow = blocks.embed_batch(self._make_batch(rows, tokens, 1))
            start = flow.hidden.clone().requires_grad_(True)
            with LayerMoments(linears, WEIGHTINGS["loss"]).gather(0, torch.Generator()):
                torch.autograd.grad(blocks.run_layer(layer, flow, start).sum(), start)
        return meter.peak

    @cache  # noqa: B019
    def count_layer_bytes(self, layer: int, rows: int, tokens: int) -> int:
        """Peak bytes of a layer's forward pass."""
        blocks, _ = self._remove_quantization(layer)
        with self._mode:
            flow = blocks.embed_batch(self._make_batch(rows, tokens, 1))
        with self._measure_memory() as meter, torch.no_grad():
            blocks.run_layer(layer, flow)
        return meter.peak

    def _remove_quantization(self, layer: int) -> tuple[Blocks, dict[str, nn.Module]]:
        linears = {name: wrapper for name, wrapper in self.wrapped.items() if self.layer_of[name] == layer}
        for wrapper in linears.values():
            wrapper.set_base()
            wrapper.set_adapter(None, None, 0.0)
        return Blocks(self.model, CPU, self.dtype), dict(linears)

    @contextmanager
    def _measure_memory(self) -> Iterator[MemoryCounter]:
        # transformers would treat fake tensors as packed sequences, and make a mask, and with it copies of keys and
        # values, that a real pass does without.
        whole = mock.patch(
            "transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None
        )
        # Experts are multiplied one after another: the products of all at once take no float32 fakes.
        grouped = "transformers.integrations.moe"
        alone = (
            mock.patch(f"{grouped}._can_use_grouped_mm", lambda *_: False)
            if find_spec(grouped)
            else nullcontext()
        )
        with self._mode, whole, alone, MemoryCounter() as meter:
            meter.exclude(*self.model.parameters(), *self.model.buffers())
            yield meter

    def _make_batch(self, rows: int, tokens: int, labels: int) -> Batch:
        with self._mode:
            ids = torch.zeros(rows, tokens, dtype=torch.long)
            at = torch.zeros(labels, dtype=torch.long)
            return Batch(ids, at, at.clone(), rows * tokens)


class Shape(str):
    """A model's config as a text, so that what was counted for it is found again."""

    config: Any

    def __new__(cls, config: Any) -> Shape:
        shape = super().__new__(cls, json.dumps([config.to_dict(), config._attn_implementation], default=str))
        shape.config = config
        return shape


@lru_cache(maxsize=KEPT)
def make_sketch(shape: Shape, dtype: torch.dtype, **options: Any) -> Sketch:
    """The sketch of a shape, made once; takes what `Sketch` does."""
    return Sketch(shape.config, dtype, **options)


def shorten_config(config: Any, layers: int) -> Any:
    """A copy of a model's config with so many layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


class _Packed(nn.Module):
    """Stands for a quantized weight, and for the backend of a table: holds nothing, and takes what dequantizing takes,
    of a table `ROWS` at a time."""

    def __init__(
        self, shape: Sequence[int], work: Mapping[tuple[int, int], int], dtype: torch.dtype, rows: int
    ):
        super().__init__()
        self.out_features, self.in_features = shape
        self.at_once, self.dtype = rows, dtype
        self.work = work.get((shape[0], shape[1]), DEQUANTIZE_BYTES * rows * shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return apply_dequantized(x, self.dequantize)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.make_rows(self.out_features, dtype or self.dtype)

    def make_rows(self, count: int, dtype: torch.dtype) -> Tensor:
        """So many rows of the weight, beside which the work is there until they are made."""
        work = torch.empty(self.work * count // self.at_once, dtype=torch.uint8)
        made = torch.empty(count, self.in_features, dtype=dtype)
        del work
        return made

    def dequantize_rows(self, at: Tensor) -> Tensor:
        return self.make_rows(len(at), self.dtype)
