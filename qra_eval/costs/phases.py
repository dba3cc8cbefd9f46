"""What every phase of a run takes in memory at its peak, from the shapes of the model and of the rows alone.

Phases are those of a run: `load`, `quantize`, `sensitivities`, `search` (an evaluation), `tune` and `export`. All are
sums, over weights and over activations (`qra_eval.costs.activations`).
On a CPU all is host memory, and files that are mapped (the checkpoint, the bank) are not counted: the system lets their
pages go. On a GPU the host holds the hidden states that wait, and libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from qra_backends.storage import ceil_div

from qra_eval.costs.activations import DEQUANTIZE_BYTES, GPU_DEQUANTIZE_BYTES, Activations
from qra_eval.models.embeddings import HEAD_ROWS
from qra_eval.models.linears import find_fused_kind
from qra_eval.quantized.bank import count_tensor_bytes
from qra_eval.quantized.build import count_workers
from qra_eval.quantized.calibration import LABELS_AT_ONCE, choose_segment_length
from qra_eval.sensitivities.measure import choose_probes, sample_probe_batch
from qra_eval.tasks.batches import LOGIT_ROWS, Batch, make_batches
from qra_eval.tasks.example import SplitName
from qra_eval.tuning.fine_tuner import SCORING_FACTOR, FineTuner
from qra_search.schemas import LevelName
from qra_search.space.memory import ADAPTER_BITS

LIBRARY_BYTES = 372 << 20
"""Bytes of python, torch, transformers and the rest before any weight, in private memory."""
EXPORT_LIBRARY_BYTES = 356 << 20
"""The same where nothing but a saved model is loaded."""
TOKEN_BYTES = 800
"""Bytes that a tokenizer takes of a token: Qwen2.5's 656 to 877, SmolLM2's 256."""
CUDA_LIBRARY_BYTES = 2 << 30
"""The same on the host of a GPU."""
CUDA_CONTEXT_BYTES = 600 << 20
"""Bytes of a GPU that its driver and its libraries take."""
MOMENT_BYTES = 8
"""Bytes of an adapter weight that AdamW keeps, beside its value and its gradient (4 each)."""
TRAINED_SCALE_BYTES = 24
"""Bytes of a scale or offset in training: its change with gradient and moments (16), what autograd saves of it as
float32 (6 for each of a pair), and its copy as it is stored (2)."""


@dataclass(frozen=True)
class PeakMemory:
    """Bytes at the height of a phase."""

    device: int
    host: int


def estimate_peaks(
    tuner: FineTuner, budget: int | None = None, *, gpu: bool | None = None
) -> dict[str, PeakMemory]:
    """The peak of every phase.

    Args:
        budget: bytes of the largest plan that will be put in place, if not the largest of the space.
        gpu: whether the device is a GPU with no room for dequantized weights; None: the device and the room at hand.
    """
    run = _Run(tuner, budget, gpu)
    model, evaluation, finetune = tuner.quantized_model, tuner.evaluation, tuner.finetune
    calibrated = any(map(model.backend.is_calibrated, [*model.levels, *model.table_levels]))
    rows = model.calibration_batches() if calibrated else []
    held_out, tested = evaluation.validation_rows, finetune.test_rows
    scored = 0 if tuner.metric == "loss" else held_out
    batches = tuner.get_batches(evaluation.steps, 0)
    searching = run.count_training_bytes(batches, "validation", held_out, scored)
    batches = tuner.get_final_batches(tuner.finetune_steps, 0)
    tuning = run.count_training_bytes(batches, "test", tested, finetune.scored_rows)
    return {
        "load": run.make_peak(),
        # A plan is quantized, each linear at one level: counted at the widest.
        "quantize": run.make_peak(
            *run.count_quantization_bytes(model.levels[-1:], model.table_levels[-1:], rows)
        ),
        "sensitivities": run.make_peak(*run.count_sensitivity_bytes()),
        "search": run.make_peak(searching),
        "tune": run.make_peak(max(tuning, run.count_untuned_bytes())),
        "export": PeakMemory(0, run.count_export_bytes()),
    }


class _Run:
    """The sizes of a run's model, plan and rows, and what each phase adds to what is always there."""

    def __init__(self, tuner: FineTuner, budget: int | None, gpu: bool | None):
        self.tuner = tuner
        model = tuner.quantized_model
        self.model = model
        self.settings = tuner.settings
        space = model.space
        text = tuner.model.config.get_text_config()
        self.vocabulary, self.width = text.vocab_size, text.hidden_size
        self.tokenizer_bytes = TOKEN_BYTES * (len(tuner.tokenizer) if tuner.tokenizer else self.vocabulary)
        self.gpu = model.device.type == "cuda" if gpu is None else gpu
        compute = model.compute if gpu is None else model.dtype
        passing = model.blocks.compute if gpu is None else model.dtype
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
        self.packed = plan - self.adapters * ADAPTER_BITS // 8
        self.cache = (self.dense + self.tables) * self.wide if gpu is None and model.keeps_dequantized else 0
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.blocks.layers]
        self.layers = len(sizes)
        self.layer = max(range(len(sizes)), key=sizes.__getitem__)
        self.layer_weights = sizes[self.layer]
        self.alike = -(-sum(sizes) // self.layer_weights)  # layers of the largest one's size
        looked_up = bool(model.tables) and (gpu is not None or not model.keeps_dequantized)
        self.activations = self.make_activations(compute, tables=looked_up and self.rank > 0, rank=self.rank)
        self.bare = self.make_activations(passing)

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
            count, tokens = find_largest_shape(batches)
            return numbers * TRAINED_SCALE_BYTES + outputs * count * tokens * self.wide
        packed = self.packed if self.cache and self.gpu else 0
        return numbers * TRAINED_SCALE_BYTES + self.largest * self.wide + packed

    def make_activations(self, dtype: torch.dtype, *, tables: bool = False, rank: int = 0) -> Activations:
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
            decoding=GPU_DEQUANTIZE_BYTES if self.gpu else DEQUANTIZE_BYTES,
        )

    def count_level_bytes(self, levels: Sequence[LevelName], shape: tuple[int, int]) -> int:
        return sum(self.model.backend.storage(level).bytes(*shape) for level in levels)

    def count_made_work_bytes(self, levels: Sequence[LevelName], shape: tuple[int, int]) -> int:
        """What was made of a linear is on a GPU until all levels are: then it goes to the host."""
        model = self.model
        work = model.backend.count_work_bytes(levels, *shape, dtype=model.dtype, device=self.device.type)
        return work + (self.count_level_bytes(levels, shape) if self.gpu else 0)

    def count_cast_bytes(self, item: int) -> int:
        """Bytes of all that is not searched, cast for passes; none if it is there in that dtype."""
        return self.rest * item // self.stored if item not in (self.stored, self.wide) else 0

    def count_cast_table_bytes(self, item: int) -> int:
        """Bytes of searched tables as they were loaded, put in place for passes of the unquantized model.

        On a CPU they are there, and the head casts some rows at a time.
        """
        if self.gpu:
            return self.tables * item
        return 0 if item == self.stored else min(self.tables, HEAD_ROWS * self.width) * item

    def count_layer_copy_bytes(self) -> int:
        """Bytes of a layer that is in place for a pass; on the host only if it is cast."""
        return 0 if not self.gpu and self.passed == self.stored else self.layer_weights * self.passed

    def count_pinned_bytes(self) -> int:
        """Bytes on the host from which a layer, or a table, is sent to a GPU."""
        tables = [table.weight.nbytes for table in self.model.tables.values()]
        return max([self.layer_weights * self.stored, *tables]) if self.gpu else 0

    # -- phases --------------------------------------------------------------------------------
    def make_peak(self, device: int = 0, host: int = 0) -> PeakMemory:
        """Peak of a phase that adds these bytes on the device and the host to what is always allocated."""
        if self.gpu:
            return PeakMemory(
                CUDA_CONTEXT_BYTES + self.rest * self.wide // self.stored + device, CUDA_LIBRARY_BYTES + host
            )
        copied = self.rest * self.wide // self.stored if self.wide != self.stored else 0
        return PeakMemory(0, LIBRARY_BYTES + self.tokenizer_bytes + copied + device + host)

    def count_quantization_bytes(
        self, levels: Sequence[LevelName], table_levels: Sequence[LevelName], batches: list[Batch]
    ) -> tuple[int, int]:
        """The pass of rows, if there are any; then the work on linears that are quantized at once."""
        model, backend = self.model, self.model.backend
        calibrated = bool(batches)
        inputs = self.group_inputs()
        shapes = [shape for some in inputs.values() for shape in some]
        units = list(inputs.values()) if calibrated else [[shape] for shape in shapes]
        count = count_workers(backend, len(units), self.device)

        def count_unit_bytes(unit: list[tuple[int, int]]) -> int:
            work = max(self.count_made_work_bytes(levels, shape) for shape in unit)
            return work + (4 * unit[0][1] ** 2 if calibrated else 0)

        work = sum(sorted(map(count_unit_bytes, units), reverse=True)[:count])
        made = sum(self.count_level_bytes(levels, shape) for shape in shapes)
        tables = model.tables.values()
        of_tables = [(t.out_features, t.in_features) for t in tables]
        made = max(made, sum(self.count_level_bytes(table_levels, shape) for shape in of_tables))
        work += max(rows * columns for rows, columns in shapes) * self.stored if self.gpu else 0
        # A table, two matrices of its inputs if it is calibrated, and the work of quantizing it.
        matrices = 2 * 4 if any(map(backend.is_calibrated, table_levels)) else 0
        table = max((self.count_made_work_bytes(table_levels, shape) for shape in of_tables), default=0)
        if tables:
            table += matrices * self.width**2 + (max(t.weight.nbytes for t in tables) if self.gpu else 0)
        made += self.count_pinned_bytes()
        if not calibrated:
            return max(work, table), made
        passing, waiting = self.count_calibration_peak_bytes(batches)
        return max(passing, self.count_moment_bytes() + work, table), made + waiting

    def group_inputs(self) -> dict[tuple[str, str], list[tuple[int, int]]]:
        """The shapes (out, in) of a layer's linears, together those that share an input, and so a moment."""
        inputs: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for name, m in self.model.linears.items():
            if self.model.layer_of[name] == self.layer:
                parent, _, kind = name.rpartition(".")
                inputs.setdefault((parent, find_fused_kind(kind)), []).append((m.out_features, m.in_features))
        return inputs

    def count_moment_bytes(self) -> int:
        return 4 * sum(shapes[0][1] ** 2 for shapes in self.group_inputs().values())

    def count_calibration_peak_bytes(self, batches: list[Batch]) -> tuple[int, int]:
        """Rows forward and backward, layer by layer: inputs of layers wait on the host, as the model is stored.

        Of one layer there are its activations, its moments, and then a linear's change at a level.
        """
        both = self.bare.count_calibration_peak_bytes(
            *find_largest_shape(batches), self.model.linears.values()
        )
        both += self.count_moment_bytes() + self.count_layer_copy_bytes()
        labels = max(len(b.targets) for b in batches)
        head = min(LABELS_AT_ONCE, labels) * self.vocabulary * (2 * self.wide + 3 * 4)
        change = self.count_moment_bytes() + 3 * 4 * self.largest
        outside = self.count_cast_table_bytes(self.passed)
        outside += 0 if self.gpu else self.count_cast_bytes(self.passed)
        positions = sum(batch.input_ids.numel() for batch in batches)
        hidden = positions * self.width * self.passed
        segment = choose_segment_length(self.layers * positions * self.width * self.stored)
        segments, within = ceil_div(self.layers, segment) - 1, min(segment, self.layers)
        waiting = 2 * hidden + (segments + within) * hidden * self.stored // self.passed
        return 8 * positions + max(outside + head, both, change), waiting + self.count_pinned_bytes()

    def count_sensitivity_bytes(self) -> tuple[int, int]:
        """The pass of the plan's rows, with probes of every linear; then some of these in place, in float32."""
        probe = sample_probe_batch(self.tuner)
        forward = self.make_activations(torch.float32).count_layer_peak_bytes(*probe.input_ids.shape)
        logits = len(probe.targets) * self.vocabulary * 4 * 5
        at_level = self.vocabulary * self.width * self.wide if self.model.tables else 0
        wider = self.count_cast_bytes(4) + self.count_cast_table_bytes(4) + at_level
        groups = [group.linears for group in self.model.space.groups if not group.is_embedding]
        widest = max(sum(m.out_features * m.in_features for m in linears) for linears in groups)
        beside = (widest - self.largest) * self.wide  # a group's other linears, dequantized
        probing = wider + max(self.layer_weights * 4 + forward + self.largest * 8 + beside, logits)
        model = self.model
        flows = len(choose_probes(model.space)) + len(model.tables) * len(model.table_levels) + 1
        waiting = probe.input_ids.numel() * self.width * 4 * flows + self.count_pinned_bytes()
        passing = self.count_quantization_bytes(model.levels, model.table_levels, model.plan_batches())
        return max(passing[0], probing), max(passing[1], waiting)

    def count_training_bytes(self, batches: list[Batch], split: SplitName, held_out: int, scored: int) -> int:
        """The plan in place, packed or dequantized, its adapters, and the highest of training, losses and answers."""

        def count_passes(some: list[Batch], *, training: bool) -> int:
            labels = max(len(batch.targets) for batch in some)
            return self.activations.count_pass_peak_bytes(
                *find_largest_shape(some), labels, training=training
            )

        trained = count_passes(batches, training=True) if batches and self.rank else 0
        trained += self.count_scale_bytes(batches) if batches else 0
        rows = self.tuner.rows(split, held_out)
        measured = count_passes(make_batches(rows, 2 * self.settings.batch_size), training=False)
        highest = max(trained, measured, self.count_generation_bytes(split, min(scored, held_out)))
        # A weight's value in float32, and moments; and its gradient where those of several batches are added up.
        adapter = 4 + MOMENT_BYTES + (4 if self.settings.accumulation > 1 else 0)
        return (self.cache or (self.packed if self.gpu else 0)) + self.adapters * adapter + highest

    def count_generation_bytes(self, split: SplitName, scored: int) -> int:
        """A pass over padded prompts, whose mask is a matrix for each row, with the keys and values of all layers."""
        tuner, task = self.tuner, self.tuner.rows.task
        if not scored or task.judged_by is None or tuner.tokenizer is None:
            return 0
        rows = min(scored, SCORING_FACTOR * tuner.settings.batch_size)
        longest = max(map(len, tuner.rows(split, scored)))
        answer = tuner.count_answer_tokens(task.split(split)[:scored])
        kept = 2 * self.layers * rows * (longest + answer) * self.activations.key_width * self.wide
        mask = rows * longest**2 * self.wide
        return kept + mask + self.activations.count_pass_peak_bytes(rows, longest, rows, training=False)

    def count_untuned_bytes(self) -> int:
        """A GPU's pass of the model as it was loaded, beside which the tuned one is seen: searched tables visit it."""
        if not self.gpu:
            return 0  # little beside a training there
        rows = self.tuner.rows("test", self.tuner.finetune.test_rows)
        batches = make_batches(rows, 2 * self.settings.batch_size)
        forward = self.bare.count_layer_peak_bytes(*find_largest_shape(batches))
        logits = (max(len(b.targets) for b in batches) * self.passed + LOGIT_ROWS * 3 * 4) * self.vocabulary
        highest = max(self.count_layer_copy_bytes() + forward, logits)
        return self.count_cast_table_bytes(self.passed) + highest

    def count_export_bytes(self) -> int:
        """On the host, whatever the device: the saved model with its tables dequantized, and what is read back of it.

        Adapters are counted as they are made, in float32.
        """
        model = self.packed + self.rest + 4 * self.adapters
        return EXPORT_LIBRARY_BYTES + self.tokenizer_bytes + 2 * model + self.tables * self.stored


def find_largest_shape(batches: list[Batch]) -> tuple[int, int]:
    rows, tokens = max((b.input_ids.shape for b in batches), key=lambda shape: shape[0] * shape[1])
    return rows, tokens
