"""What every phase of a run takes in memory at its peak, from the shapes of the model and of the rows alone.

Phases are those of a run: `load`, `quantize`, `prior`, `search` (an evaluation), `tune`, and `reload` (the check of
what was saved). Activations are counted by running the model's own code on fake tensors (`qra_eval.costs.sketch`); the
rest are sums over weights. On a CPU all is host memory, and files that are mapped (the checkpoint, the bank) are not
counted: the system lets their pages go. On a GPU the host holds the hidden states that wait, and libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from qra_eval.costs.sketch import DEQUANTIZE_BYTES, Shape, Sketch, sketch
from qra_eval.models.device import has_matrix_units
from qra_eval.quantized.adapter_init import FITTED, fit_bytes
from qra_eval.quantized.calibration import likeness
from qra_eval.quantized.threads import workers
from qra_eval.quantized.weight_cache import tensor_bytes
from qra_eval.sensitivities.cache import PRIOR_ROWS, probe_batch
from qra_eval.sensitivities.fisher import LABELS
from qra_eval.sensitivities.measure import probed
from qra_eval.tasks.batches import Batch, bucketed, passed_together
from qra_eval.tasks.losses import CHUNK
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.saved import CHECKED_TOKENS

LIBRARIES = 372 << 20
"""Bytes of python, torch, transformers and the rest before any weight, in private memory."""
RELOAD_LIBRARIES = 356 << 20
"""The same where nothing but a saved model is loaded."""
CUDA_LIBRARIES = 2 << 30
"""The same on the host of a GPU."""
CUDA_CONTEXT = 600 << 20
"""Bytes of a GPU that its driver and its libraries take."""
TRAINED_NUMBER = 24
"""Bytes of a scale or offset in training: its change with gradient and moments (16), what autograd saves of it as
float32 (6 for each of a pair), and its copy as it is stored (2)."""
MOMENTS = 8
"""Bytes of an adapter weight that AdamW keeps, beside its value and its gradient (4 each)."""
DAMAGE_BYTES = 12
"""Of a weight, beside its dequantized form, while a level's damage is measured: it and the unquantized one in float32,
and their difference."""


@dataclass(frozen=True)
class Peak:
    """Bytes at the height of a phase."""

    device: int
    host: int


def foretell(tuner: FineTuner, budget: int | None = None, *, gpu: bool | None = None) -> dict[str, Peak]:
    """The peak of every phase.

    Args:
        budget: bytes of the largest plan that will be put in place, if not the largest of the space.
        gpu: whether the device is a GPU with no room for dequantized weights; None: the device and the room at hand.
    """
    return _Phases(tuner, budget, gpu).all()


class _Phases:
    def __init__(self, tuner: FineTuner, budget: int | None, gpu: bool | None):
        self.bench, model = tuner, tuner.quantized
        self.model, self.settings, self.space = model, tuner.settings, model.space
        self.gpu = model.device.type == "cuda" if gpu is None else gpu
        compute, passing = (model.compute, model.blocks.compute) if gpu is None else (model.dtype, model.dtype)
        self.wide, self.passed = compute.itemsize, passing.itemsize
        self.stored = model.dtype.itemsize
        linears = list(model.linears.values())
        self.largest = max(m.out_features * m.in_features for m in linears)
        dense = sum(m.out_features * m.in_features for m in linears)
        self.tables = sum(table.linear.weight.numel() for table in model.tables.values())
        self.rest = tensor_bytes(tuner.model) - (dense + self.tables) * self.stored
        self.looked_up = bool(model.tables) and (gpu is not None or not model.materialised)
        self.rank = max(self.space.ranks)
        self.adapters = self.rank * sum(m.out_features + m.in_features for m in linears)
        self.plan = max(0, min(budget or self.space.memory.maximum, self.space.memory.maximum) - self.space.fixed_bytes)
        self.packed = self.plan - self.adapters * self.space.adapter_bits // 8
        kept = dense * len(model.levels) + self.tables * len(model.table_levels)
        self.cache = min(model.room if gpu is None else 0, kept * self.wide)
        self.layer, self.layer_weights = self._heaviest()
        self.short, self.long = (self._sketch(compute, layers=n, rank=self.rank) for n in self._depths())
        self.layerwise = self._sketch(passing, layers=self._depths()[1], rank=0)

    def all(self) -> dict[str, Peak]:
        evaluation, finetune = self.bench.evaluation, self.bench.finetune
        step = self._step(evaluation.steps, "validation", evaluation.validation_rows)
        final = self._step(finetune.steps, "test", finetune.test_rows)
        quantize, sensitivities = self._quantize(), self._prior(torch.float32)
        if self.gpu and evaluation.hopeless and evaluation.steps:
            step = max(step, self._untuned())
        phases = {"load": (0, 0), "quantize": quantize, "prior": sensitivities, "search": (step, 0)}
        phases |= {"tune": (final, 0), "reload": (self._reload(), 0)}
        return {
            name: self._peak(*parts, RELOAD_LIBRARIES if name == "reload" else LIBRARIES)
            for name, parts in phases.items()
        }

    def _peak(self, device: int, host: int, libraries: int) -> Peak:
        """Of a phase that holds so much on the device beside what always is there, and on the host."""
        if self.gpu:
            return Peak(CUDA_CONTEXT + self.rest * self.wide // self.stored + device, CUDA_LIBRARIES + host)
        copied = self.rest * self.wide // self.stored if self.wide != self.stored else 0
        return Peak(0, libraries + copied + device + host)

    # -- phases --------------------------------------------------------------------------------
    def _quantize(self) -> tuple[int, int]:
        """A layer, its Hessians and the rows' hidden states; then the largest linear's work."""
        backend, model = self.model.backend, self.model
        levels = model.levels
        linears = {name: m for name, m in model.linears.items() if self.model.layer_of[name] == self.layer}
        place = "cuda" if self.gpu else "cpu"
        # An input's width stands for the input: linears that share one share a matrix, and are worked on in turn.
        inputs: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for name, m in linears.items():
            inputs.setdefault((name.rpartition(".")[0], m.in_features), []).append((m.out_features, m.in_features))
        calibrated = any(map(backend.calibrates, levels))
        units = list(inputs.values()) if calibrated else [[shape] for shapes in inputs.values() for shape in shapes]

        def at_once(shapes: list[tuple[int, int]]) -> int:
            work = max(backend.work_bytes(levels, *shape, dtype=model.dtype, device=place) for shape in shapes)
            return work + (4 * shapes[0][1] ** 2 if calibrated else 0)

        side_by_side = workers(backend, len(units), torch.device(place))
        work = sum(sorted(map(at_once, units), reverse=True)[:side_by_side])
        made = sum(backend.storage(b).bytes(m.out_features, m.in_features) for b in levels for m in linears.values())
        turns = "caldera" in self.settings.inits
        if set(FITTED) & set(self.settings.inits):

            def fitted_at_once(shapes: list[tuple[int, int]]) -> int:
                return max(fit_bytes(*shape) for shape in shapes) + (at_once(shapes) if turns else 0)

            work = max(work, sum(sorted(map(fitted_at_once, units), reverse=True)[:side_by_side]))
            directions = 4 * max(model.space.ranks) * len(levels)
            factors = directions * sum(m.out_features + m.in_features for m in linears.values())
            made = max(made, factors + (made if turns else 0))
        placed = max(m.weight.nbytes for m in linears.values()) if self.gpu else 0
        tables = [table.linear for table in model.tables.values()]
        at_table = max((self._table_work(linear, place) for linear in tables), default=0)
        stored = [backend.storage(b).bytes(t.out_features, t.in_features) for b in model.table_levels for t in tables]
        made = max(made, sum(stored))
        if not calibrated:
            return max(work + placed, at_table), made
        batches = model.calibration_batches()
        rows, tokens = _largest(batches)
        moments = 4 * sum(width**2 for _, width in inputs)
        experts = 4 * sum(width**2 for parent, width in inputs if likeness(f"{parent}.") != f"{parent}.")
        forward = self.layerwise.calibration(self._at, rows, tokens) + experts + self._placed()
        casts = (0 if self.gpu else self._cast(self.passed)) + self._cast_tables(self.passed)
        work = max(forward, moments + work + placed, at_table)
        return casts + work, made + self._hidden(batches, self.passed)

    def _table_work(self, table: nn.Linear, place: str) -> int:
        """A table, two matrices of its inputs, and the work of quantizing it."""
        shape = table.out_features, table.in_features
        work = self.model.backend.work_bytes(self.model.table_levels, *shape, dtype=self.model.dtype, device=place)
        return work + 2 * 4 * table.in_features**2 + (table.weight.nbytes if self.gpu else 0)

    def _prior(self, probing: torch.dtype) -> tuple[int, int]:
        """Of both halves the higher: gradients layer by layer; probes in float32."""
        rows = self.bench.rows("calibration", PRIOR_ROWS)
        batches, layers = passed_together(rows), len(self.model.blocks)
        n, tokens = _largest(batches)
        _, both = self.layerwise.sensitivity(self._at, n, tokens)
        level = max(self._damage(n * tokens, m.out_features, m.in_features) for m in self.model.linears.values())
        vocabulary = self.bench.model.config.get_text_config().vocab_size
        labels = min(LABELS, max(len(b.targets) for b in batches))
        head = labels * vocabulary * (2 * self.wide + 3 * 4)
        casts = (0 if self.gpu else self._cast(self.passed)) + self._cast_tables(self.passed)
        reordered = self._reordered(self.passed)
        gradients = (
            casts + reordered + max(self._placed() + both + level, head),
            (layers + 1) * self._hidden(batches, self.passed),
        )
        count, longest = probe_batch(rows).input_ids.shape
        forward, _ = self._sketch(probing, layers=self._depths()[1], rank=0).sensitivity(self._at, count, longest)
        hidden = count * longest * self.bench.model.config.get_text_config().hidden_size * probing.itemsize
        labels = max(len(b.targets) for b in batches) * count // n
        logits = labels * vocabulary * 4 * 5
        wider = self._cast(probing.itemsize) + self._cast_tables(probing.itemsize)
        probes = wider + max(self.layer_weights * probing.itemsize + forward + self.largest * 8, logits)
        waiting = hidden * (len(probed(self.space)) + len(self.model.tables) * len(self.model.table_levels) + 1)
        if self.gpu:
            return max(gradients[0], probes), max(gradients[1], waiting)
        return max(gradients, (probes, waiting), key=sum)

    def _damage(self, tokens: int, out_features: int, in_features: int) -> int:
        """At a linear's gradient: the change of its weight by a level, then of its output; then the singular values."""
        size, wider = out_features * in_features, 4 if self.passed < 4 else 0
        gradient, whole = tokens * out_features * wider, 4 * size
        weight = size * (DAMAGE_BYTES + max(DEQUANTIZE_BYTES, self.wide))
        output = whole + size * self.passed + tokens * out_features * (self.passed + wider)
        values = whole + tokens * in_features * wider
        return gradient + max(weight, output, values)

    def _step(self, steps: int, split: str, held_out: int) -> int:
        """Training a plan, or measuring it."""
        trained = 0
        if steps and self.rank:
            batches = self.bench.batches(steps, 0)
            rows, tokens = _largest(batches)
            labels = max(len(b.targets) for b in batches)
            trained = self._stretched(*(s.training_step(rows, tokens, labels) for s in (self.short, self.long)))
        if steps and self.settings.scales:
            trained += self._trained_scales()
        batches = bucketed(self.bench.rows(split, held_out), 2 * self.settings.batch_size)  # type: ignore[arg-type]
        rows, tokens = _largest(batches)
        labels = max(len(b.targets) for b in batches)
        measured = self._stretched(*(s.held_out(rows, tokens, labels) for s in (self.short, self.long)))
        return self._resident(adapters=4 + MOMENTS) + max(trained, measured) + self._reordered(self.wide)

    def _untuned(self) -> int:
        """A pass of the model as it was loaded, which says when a training is hopeless: searched tables visit it."""
        size = self.settings.batch_size
        batches = bucketed(self.bench.rows("calibration", size), 2 * size)
        forward, _ = self.layerwise.sensitivity(self._at, *_largest(batches))
        labels = max(len(b.targets) for b in batches)
        logits = (labels * self.passed + CHUNK * 3 * 4) * self.bench.model.config.get_text_config().vocab_size
        return self._cast_tables(self.passed) + max(self._placed() + forward, logits)

    def _reload(self) -> int:
        """What was saved is loaded, then computes the logits of a short row with one linear dequantized at a time.

        peft makes factors in float32 where a base has integers for weights; they are cast when all are there.
        """
        logits = 3 * 4 * CHECKED_TOKENS * self.bench.model.config.get_text_config().vocab_size
        computing = self.adapters * self.stored + self.largest * self.stored + logits
        return self._resident(adapters=0) + max(4 * self.adapters, computing)

    def _trained_scales(self) -> int:
        """Scales and offsets of all linears, the gradient of a whole weight, and the weights that wait for it."""
        model, levels = self.model, self.model.levels
        numbers = sum(
            max((model.backend.trainable_numbers(b, m.out_features, m.in_features) for b in levels), default=0)
            for m in model.linears.values()
        )
        kept = sum(m.out_features * m.in_features for m in model.linears.values()) if self.cache else 0
        return numbers * TRAINED_NUMBER + (self.largest + kept) * self.wide

    def _resident(self, *, adapters: int) -> int:
        """The plan in place, and what is kept dequantized."""
        return (self.packed if self.gpu else 0) + self.adapters * adapters + self.cache

    # -- helpers -------------------------------------------------------------------------------
    def _depths(self) -> tuple[int, int]:
        """Layers of the two sketches that are measured: activations grow by the same for each layer that is added."""
        whole = len(self.model.blocks)
        return (1, 2) if whole > 2 and self.alike else (whole, whole)

    def _stretched(self, short: int, long: int) -> int:
        """What the whole model takes, from what the sketches of two depths take."""
        return long + (long - short) * (len(self.model.blocks) - self._depths()[1])

    @property
    def _at(self) -> int:
        """The heaviest layer, or in a shorter sketch one like it."""
        return min(self.layer, self._depths()[1] - 1)

    def _sketch(self, dtype: torch.dtype, *, layers: int, rank: int) -> Sketch:
        return sketch(
            Shape(self.bench.model.config), dtype, tables=self.looked_up and rank > 0, rank=rank,
            checkpointing=self.settings.gradient_checkpointing, layers=layers,
        )  # fmt: skip

    def _cast(self, item: int) -> int:
        """Bytes of all that is not searched, cast for passes; none if it is there in that dtype."""
        return self.rest * item // self.stored if item not in (self.stored, self.wide) else 0

    def _cast_tables(self, item: int) -> int:
        """Bytes of searched tables as they were loaded, put in place for passes of the unquantized model."""
        return self.tables * item if self.gpu or item != self.stored else 0

    def _reordered(self, item: int) -> int:
        """A CPU with matrix units (AMX) copies a product's weight into another order: the head's is the largest."""
        if self.gpu or item != 2 or not has_matrix_units():
            return 0
        text = self.bench.model.config.get_text_config()
        return max(self.largest, text.vocab_size * text.hidden_size) * item

    def _placed(self) -> int:
        """Bytes of a layer that is in place for a pass; on the host only if it is cast."""
        return self.layer_weights * self.passed if self.gpu or self.passed != self.stored else 0

    def _heaviest(self) -> tuple[int, int]:
        """The layer with the most weights, and how many."""
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in self.model.blocks.layers]
        self.alike = len(set(sizes)) == 1
        heaviest = max(range(len(sizes)), key=sizes.__getitem__)
        return heaviest, sizes[heaviest]

    def _hidden(self, batches: list[Batch], item: int) -> int:
        width = self.bench.model.config.get_text_config().hidden_size
        return sum(b.input_ids.numel() for b in batches) * width * item


def _largest(batches: list[Batch]) -> tuple[int, int]:
    """Rows and tokens of the largest batch."""
    rows, tokens = max((b.input_ids.shape for b in batches), key=lambda shape: shape[0] * shape[1])
    return rows, tokens
