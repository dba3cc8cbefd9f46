"""How large a run's model, plan and batches are: the numbers that the peaks of phases are sums of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qra_eval.costs.activations import Activations, count_decoding_bytes
from qra_eval.models.embeddings import ROWS
from qra_eval.quantized.bank import count_tensor_bytes
from qra_eval.tasks.batches import Batch
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.space.levels import LevelName

MOMENTS = 8
"""Bytes of an adapter weight that AdamW keeps, beside its value and its gradient (4 each)."""
TRAINED_NUMBER = 24
"""Bytes of a scale or offset in training: its change with gradient and moments (16), what autograd saves of it as
float32 (6 for each of a pair), and its copy as it is stored (2)."""


class Sizes:
    """The sizes of a run's model, plan and rows; of layers over several devices, those on one that holds them all."""

    def __init__(self, tuner: FineTuner, budget: int | None, gpu: bool | None):
        self.tuner = tuner
        model = tuner.quantized_model
        self.model = model
        self.settings = tuner.settings
        space = model.space
        text = tuner.model.config.get_text_config()
        self.vocabulary, self.width = text.vocab_size, text.hidden_size
        self.gpu = model.device.type == "cuda" if gpu is None else gpu
        compute, passing = (
            (model.compute, model.blocks.compute) if gpu is None else (model.dtype, model.dtype)
        )
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.wide = compute.itemsize
        self.passed = passing.itemsize
        self.stored = model.dtype.itemsize
        self.shapes = [(m.out_features, m.in_features) for m in model.linears.values()]
        self.largest = max(rows * columns for rows, columns in self.shapes)
        self.dense = sum(rows * columns for rows, columns in self.shapes)
        self.tables = sum(table.weight.numel() for table in model.tables.values())
        self.rest = count_tensor_bytes(tuner.model) - (self.dense + self.tables) * self.stored
        self.rank = max(space.ranks)
        self.adapters = self.rank * sum(map(sum, self.shapes))
        plan = max(0, min(budget or space.memory.maximum, space.memory.maximum) - space.fixed_bytes)
        self.packed = plan - self.adapters * space.adapter_bits // 8
        self.cache = (self.dense + self.tables) * self.wide if gpu is None and model.keeps_dequantized else 0
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.blocks.layers]
        self.layers = len(sizes)
        self.layer = max(range(len(sizes)), key=sizes.__getitem__)
        self.layer_weights = sizes[self.layer]
        self.alike = -(-sum(sizes) // self.layer_weights)  # layers of the largest one's size
        tables = {(m.out_features, m.in_features) for m in model.tables.values()}
        work = {shape: count_decoding_bytes(model.backend, model.levels, *shape) for shape in {*self.shapes}}
        work |= {
            s: count_decoding_bytes(model.backend, model.table_levels, *s, rows=min(ROWS, s[0]))
            for s in tables
        }
        self.decoding = work if self.gpu else {}
        looked_up = bool(model.tables) and (gpu is not None or not model.keeps_dequantized)
        self.activations = self.make_activations(compute, tables=looked_up and self.rank > 0, rank=self.rank)
        self.bare = self.make_activations(passing)

    def count_resident_bytes(self) -> int:
        """The plan in place, packed or dequantized, and adapters in training.

        Of an adapter weight its value in float32, and moments; and its gradient where those of several batches are
        added up, as it else is of the passes.
        """
        adapter = 4 + MOMENTS + (4 if self.settings.accumulation > 1 else 0)
        return (self.cache or (self.packed if self.gpu else 0)) + self.adapters * adapter

    def count_scale_bytes(self, batches: list[Batch]) -> int:
        """Scales and offsets of all linears, and the gradient of a whole weight.

        Beside dequantized weights scales of rows have their outputs wait instead; for others the packed weights are
        there, and those dequantized in the forward pass wait for the backward pass.
        """
        model = self.model
        outputs = sum(rows for rows, _ in self.shapes)
        numbers = sum(max((model.count_trained(b, *s) for b in model.levels), default=0) for s in self.shapes)
        if not numbers:
            return 0
        if self.cache and numbers <= outputs:
            count, tokens = find_largest_batch(batches)
            return numbers * TRAINED_NUMBER + outputs * count * tokens * self.wide
        packed = self.packed if self.cache and self.gpu else 0
        return numbers * TRAINED_NUMBER + self.largest * self.wide + packed

    def count_batch_bytes(self, batches: list[Batch], *, training: bool) -> int:
        """What the whole model takes of batches."""
        labels = max(len(batch.targets) for batch in batches)
        return self.activations.count_pass_bytes(*find_largest_batch(batches), labels, training=training)

    def make_activations(self, dtype: torch.dtype, *, tables: bool = False, rank: int = 0) -> Activations:
        """Passes with all that dequantizing takes on the device."""
        return Activations(
            self.model.blocks.layers[self.layer],
            {name: m for name, m in self.model.linears.items() if self.model.layer_of[name] == self.layer},
            self.tuner.model.config,
            dtype,
            layers=self.alike,
            rank=rank,
            dropout=self.settings.dropout,
            checkpointing=self.settings.gradient_checkpointing,
            tables=tables,
            decoding=self.decoding,
        )

    def count_linear_work_bytes(self, levels: Sequence[LevelName], shape: tuple[int, int]) -> int:
        """Bytes that quantizing one linear takes at its peak."""
        return self.model.backend.count_work_bytes(
            levels, *shape, dtype=self.model.dtype, device=self.device.type
        )

    def count_level_bytes(self, levels: Sequence[LevelName], shape: tuple[int, int]) -> int:
        return sum(self.model.backend.storage(level).bytes(*shape) for level in levels)

    def count_table_work_bytes(self, table: nn.Linear) -> int:
        """A table, two matrices of its inputs if it is calibrated, and the work of quantizing it."""
        levels, shape = self.model.table_levels, (table.out_features, table.in_features)
        work = self.count_linear_work_bytes(levels, shape) + (
            self.count_level_bytes(levels, shape) if self.gpu else 0
        )
        moments = 2 * 4 * table.in_features**2 if any(map(self.model.backend.is_calibrated, levels)) else 0
        return work + moments + (table.weight.nbytes if self.gpu else 0)

    def count_cast_bytes(self, item: int) -> int:
        """Bytes of all that is not searched, cast for passes; none if it is there in that dtype."""
        return self.rest * item // self.stored if item not in (self.stored, self.wide) else 0

    def count_cast_table_bytes(self, item: int) -> int:
        """Bytes of searched tables as they were loaded, put in place for passes of the unquantized model.

        On a CPU they are there, and the head casts some rows at a time.
        """
        if self.gpu:
            return self.tables * item
        return 0 if item == self.stored else min(self.tables, ROWS * self.width) * item

    def count_reordered_weight_bytes(self, item: int) -> int:
        """A CPU with matrix units (AMX) copies a product's weight into another order: the head's is the largest."""
        # Where torch does not say what a CPU has, it may have them.
        has_units = not hasattr(torch.cpu, "get_capabilities") or torch.cpu.get_capabilities().get("amx_bf16")
        if self.gpu or item != 2 or not has_units:
            return 0
        return max(self.largest, self.vocabulary * self.width) * item

    def count_placed_layer_bytes(self) -> int:
        """Bytes of a layer that is in place for a pass; on the host only if it is cast."""
        return 0 if not self.gpu and self.passed == self.stored else self.layer_weights * self.passed

    def count_pinned_bytes(self) -> int:
        """Bytes on the host from which a layer, or a table, is sent to a GPU."""
        tables = [table.weight.nbytes for table in self.model.tables.values()]
        return max([self.layer_weights * self.stored, *tables]) if self.gpu else 0


def find_largest_batch(batches: list[Batch]) -> tuple[int, int]:
    """Rows and tokens of the largest batch."""
    rows, tokens = max((b.input_ids.shape for b in batches), key=lambda shape: shape[0] * shape[1])
    return rows, tokens
