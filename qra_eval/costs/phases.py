"""What every phase of a run takes in memory at its peak, from the shapes of the model and of the rows alone.

Phases are those of a run: `load`, `quantize`, `sensitivities`, `search` (an evaluation), `tune`, and `reload` (the
check of what was saved). Activations are counted by running the model's own code on fake tensors
(`qra_eval.costs.sketch`); the rest are sums over weights. On a CPU all is host memory, and files that are mapped (the
checkpoint, the bank) are not counted: the system lets their pages go. On a GPU the host holds the hidden states that
wait, and libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qra_eval.costs.decoding import decoding_bytes
from qra_eval.costs.sketch import Shape, Sketch, sketch
from qra_eval.models.device import has_matrix_units
from qra_eval.models.embeddings import ROWS
from qra_eval.models.split import spread
from qra_eval.quantized.adapter_init import FITTED, fit_bytes
from qra_eval.quantized.calibration import likeness
from qra_eval.quantized.threads import workers
from qra_eval.quantized.weight_cache import tensor_bytes
from qra_eval.sensitivities.cache import SENSITIVITIES_ROWS, probe_batch
from qra_eval.sensitivities.fisher import LABELS
from qra_eval.sensitivities.measure import probed
from qra_eval.tasks.batches import Batch, bucketed, passed_together
from qra_eval.tasks.example import SplitName
from qra_eval.tasks.losses import CHUNK
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.saved import CHECKED_TOKENS
from qra_search.space.levels import LevelName

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


@dataclass(frozen=True)
class Peak:
    """Bytes at the height of a phase."""

    device: int
    host: int


def foretell(
    tuner: FineTuner, budget: int | None = None, *, gpu: bool | None = None, cards: int | None = None
) -> dict[str, Peak]:
    """The peak of every phase; of several cards that of the one that holds most.

    Args:
        budget: bytes of the largest plan that will be put in place, if not the largest of the space.
        gpu: whether the device is a GPU with no room for dequantized weights; None: the device and the room at hand.
        cards: over which the layers are spread; None: over the devices at hand.
    """
    devices: Sequence[Any] = tuner.quantized.blocks.devices if cards is None else spread(tuner.model, range(cards))
    places = [[at for at, own in enumerate(devices) if own == device] for device in dict.fromkeys(devices)]
    peaks = [_foretold(tuner, _Run(tuner, budget, gpu, layers)) for layers in places]
    return {n: Peak(max(p[n].device for p in peaks), max(p[n].host for p in peaks)) for n in peaks[0]}


def _foretold(tuner: FineTuner, run: _Run) -> dict[str, Peak]:
    evaluation, finetune = tuner.evaluation, tuner.finetune
    search = run.training(evaluation.steps, "validation", evaluation.validation_rows)
    if run.gpu and evaluation.hopeless and evaluation.steps:
        search = max(search, run.passing_untuned())
    return {
        "load": run.peak(),
        "quantize": run.peak(*run.quantizing()),
        "sensitivities": run.peak(*run.measuring_sensitivities()),
        "search": run.peak(search),
        "tune": run.peak(run.training(finetune.steps, "test", finetune.test_rows)),
        "reload": run.peak(run.reloading(), libraries=RELOAD_LIBRARIES),
    }


class _Run:
    """The sizes of a run's model, plan and rows, and what each phase adds to what is always there.

    A phase is given as bytes on the device and bytes on the host.

    Args:
        own: the layers on the device that is looked at; all else is where the first one is.
    """

    def __init__(self, tuner: FineTuner, budget: int | None, gpu: bool | None, own: Sequence[int]):
        self.tuner, model = tuner, tuner.quantized
        self.model, self.settings, space = model, tuner.settings, model.space
        text = tuner.model.config.get_text_config()
        self.vocabulary, self.width = text.vocab_size, text.hidden_size
        self.gpu = model.device.type == "cuda" if gpu is None else gpu
        compute, passing = (model.compute, model.blocks.compute) if gpu is None else (model.dtype, model.dtype)
        self.wide, self.passed, self.stored = compute.itemsize, passing.itemsize, model.dtype.itemsize
        self.shapes = [(m.out_features, m.in_features) for m in model.linears.values()]
        self.largest = max(rows * columns for rows, columns in self.shapes)
        self.dense = sum(rows * columns for rows, columns in self.shapes)
        self.tables = sum(table.linear.weight.numel() for table in model.tables.values())
        self.rest = tensor_bytes(tuner.model) - (self.dense + self.tables) * self.stored
        self.rank = max(space.ranks)
        self.adapters = self.rank * sum(map(sum, self.shapes))
        plan = max(0, min(budget or space.memory.maximum, space.memory.maximum) - space.fixed_bytes)
        self.packed = plan - self.adapters * space.adapter_bits // 8
        ready = self.dense * len(model.levels) + self.tables * len(model.table_levels)
        self.cache = min(model.room if gpu is None else 0, ready * self.wide)
        self.kept = (self.dense + self.tables) * self.stored if gpu is None and model.blocks.keeps else 0
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.blocks.layers]
        self.layers, self.layer = len(sizes), max(range(len(sizes)), key=sizes.__getitem__)
        self.layer_weights = sizes[self.layer]
        self.own, self.part = len(own), sum(sizes[at] for at in own) / sum(sizes)
        if self.own < self.layers:
            self._take_part(first=0 in own)
        # Activations grow by the same for each layer that is added, if all layers are alike.
        self.depths = (1, 2) if self.layers > 2 and len(set(sizes)) == 1 else (self.layers, self.layers)
        self.layer_sketched = min(self.layer, self.depths[1] - 1)
        tables = {(m.out_features, m.in_features) for m in (t.linear for t in model.tables.values())}
        work = {shape: decoding_bytes(model.backend, model.levels, *shape) for shape in {*self.shapes}}
        work |= {s: decoding_bytes(model.backend, model.table_levels, *s, rows=min(ROWS, s[0])) for s in tables}
        self.work = tuple(sorted(work.items())) if self.gpu else ()
        looked_up = bool(model.tables) and (gpu is not None or not model.materialised)
        self.short, self.long = (
            self._sketch(compute, layers, tables=looked_up and self.rank > 0, rank=self.rank) for layers in self.depths
        )
        self.bare = self._sketch(passing, self.depths[1])

    def _take_part(self, *, first: bool) -> None:
        """Of what lies on the device for long, the part of its layers; and what is outside of layers on the first."""
        tables, stored = [t.linear for t in self.model.tables.values()], self.model.backend.storage
        levels = self.model.table_levels or ((),)
        packed = [sum(stored(b).bytes(t.out_features, t.in_features) for t in tables) for b in levels]
        self.packed = int((self.packed - min(packed)) * self.part) + (max(packed) if first else 0)
        self.rest, self.tables = (self.rest, self.tables) if first else (0, 0)
        for name in ("adapters", "cache", "kept"):
            setattr(self, name, int(getattr(self, name) * self.part))

    def peak(self, device: int = 0, host: int = 0, *, libraries: int = LIBRARIES) -> Peak:
        """Of a phase that adds so much on the device, and on the host, to what is always there."""
        if self.gpu:
            return Peak(CUDA_CONTEXT + self.rest * self.wide // self.stored + device, CUDA_LIBRARIES + host)
        copied = self.rest * self.wide // self.stored if self.wide != self.stored else 0
        return Peak(0, libraries + copied + device + host)

    # -- phases --------------------------------------------------------------------------------
    def quantizing(self) -> tuple[int, int]:
        """A layer, its Hessians and the rows' hidden states; then the work on linears that are quantized at once."""
        model, backend, levels = self.model, self.model.backend, self.model.levels
        linears = {n: m for n, m in model.linears.items() if model.layer_of[n] == self.layer}
        # An input's width stands for the input: linears that share one share a Hessian, and are worked on in turn.
        inputs: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for name, m in linears.items():
            inputs.setdefault((name.rpartition(".")[0], m.in_features), []).append((m.out_features, m.in_features))
        shapes = [shape for some in inputs.values() for shape in some]
        calibrated, fitted = any(map(backend.calibrates, levels)), self.settings.init in FITTED
        turns = self.settings.init == "caldera"
        units = list(inputs.values()) if calibrated else [[shape] for shape in shapes]
        count = workers(backend, len(units), torch.device(self._place))

        def quantized(unit: list[tuple[int, int]]) -> int:
            # What was made of a linear is on a GPU until all levels are: then it goes to the host.
            work = max(self._work(levels, shape) + (self._made(levels, shape) if self.gpu else 0) for shape in unit)
            return work + (4 * unit[0][1] ** 2 if calibrated else 0)

        def fit(unit: list[tuple[int, int]]) -> int:
            return max(fit_bytes(*shape) for shape in unit) + (quantized(unit) if turns else 0)

        kinds = (quantized, fit) if fitted else (quantized,)
        work = max(sum(sorted(map(kind, units), reverse=True)[:count]) for kind in kinds)
        made = sum(self._made(levels, shape) for shape in shapes)
        if fitted:
            factors = 4 * self.rank * len(levels) * sum(map(sum, shapes))
            made = max(made, factors + (made if turns else 0))
        tables = [table.linear for table in model.tables.values()]
        made = max(made, sum(self._made(model.table_levels, (t.out_features, t.in_features)) for t in tables))
        work += max(m.weight.nbytes for m in linears.values()) if self.gpu and not self.kept else 0
        table = max(map(self._table_work, tables), default=0)
        made += self._pinned()
        if not calibrated:
            return max(work, table), made
        batches = model.calibration_batches()
        moments = 4 * sum(width**2 for _, width in inputs)
        experts = 4 * sum(width**2 for parent, width in inputs if likeness(f"{parent}.") != f"{parent}.")
        forward = self.bare.calibration(self.layer_sketched, *_largest(batches)) + experts + self._placed()
        tokens = sum(8 * batch.input_ids.numel() for batch in batches)  # which stay where they are passed
        highest = max(self._casts(), forward, moments + work, table)
        return self.kept + tokens + highest, made + self._hidden(batches)

    def measuring_sensitivities(self) -> tuple[int, int]:
        """Of both halves the higher: gradients layer by layer; probes in float32."""
        rows = self.tuner.rows("calibration", SENSITIVITIES_ROWS)
        batches, probe = passed_together(rows), probe_batch(rows)
        count, tokens = _largest(batches)
        _, both = self.bare.sensitivity(self.layer_sketched, count, tokens)
        labels = max(len(b.targets) for b in batches)
        head = min(LABELS, labels) * self.vocabulary * (2 * self.wide + 3 * 4)
        gradients = (
            self._casts() + self._reordered(self.passed) + max(self._placed() + both + self._levels_sent(), head),
            (self.layers + 1) * self._hidden(batches) + self._pinned(),
        )
        sketched = self._sketch(torch.float32, self.depths[1])
        forward, _ = sketched.sensitivity(self.layer_sketched, *probe.input_ids.shape)
        logits = labels * probe.input_ids.shape[0] // count * self.vocabulary * 4 * 5
        wider = self._cast(4) + self._cast_tables(4)
        probing = wider + max(self.layer_weights * 4 + forward + self.largest * 8, logits)
        flows = len(probed(self.model.space)) + len(self.model.tables) * len(self.model.table_levels) + 1
        waiting = probe.input_ids.numel() * self.width * 4 * flows
        if self.gpu:
            return self.kept + max(gradients[0], probing), max(gradients[1], waiting + self._pinned())
        return max(gradients, (probing, waiting), key=sum)

    def training(self, steps: int, split: SplitName, held_out: int) -> int:
        """Training a plan, or measuring it."""
        trained = 0
        if steps and self.rank:
            trained = self._stretched("training_step", self.tuner.batches(steps, 0))
        if steps:
            trained += self._trained_scales(steps)
        rows = self.tuner.rows(split, held_out)
        measured = self._stretched("held_out", bucketed(rows, 2 * self.settings.batch_size))
        return self._resident(adapters=4 + MOMENTS) + max(trained, measured) + self._reordered(self.wide)

    def passing_untuned(self) -> int:
        """A pass of the model as it was loaded, which says when a training is hopeless: searched tables visit it."""
        size = self.settings.batch_size
        batches = bucketed(self.tuner.rows("calibration", size), 2 * size)
        forward, _ = self.bare.sensitivity(self.layer_sketched, *_largest(batches))
        logits = (max(len(b.targets) for b in batches) * self.passed + CHUNK * 3 * 4) * self.vocabulary
        return self._cast_tables(self.passed) + max(self._placed() + forward, logits)

    def reloading(self) -> int:
        """What was saved is loaded, then computes the logits of a short row with one linear dequantized at a time.

        peft makes factors in float32 where a base has integers for weights; they are cast when all are there.
        """
        saved = self._sketch(self.model.dtype, self.depths[1], tables=self.tables > 0, rank=self.rank)
        computing = self.adapters * self.stored + saved.held_out(1, CHECKED_TOKENS, CHECKED_TOKENS)
        return (self.packed if self.gpu else 0) + max(4 * self.adapters, computing)

    # -- parts ---------------------------------------------------------------------------------
    def _resident(self, *, adapters: int) -> int:
        """The plan in place, and what is kept dequantized."""
        return (self.packed if self.gpu else 0) + self.adapters * adapters + self.cache

    def _trained_scales(self, steps: int) -> int:
        """Scales and offsets of all linears, the gradient of a whole weight, and the weights that wait for it.

        Beside weights that are kept ready, scales of rows have their outputs wait instead.
        """
        model, outputs = self.model, sum(rows for rows, _ in self.shapes)
        numbers = sum(max((model.trained_numbers(b, *s) for b in model.levels), default=0) for s in self.shapes)
        numbers = int(numbers * self.part)
        if not numbers:
            return 0
        if self.cache and numbers <= outputs:
            count, tokens = _largest(self.tuner.batches(steps, 0))
            return numbers * TRAINED_NUMBER + outputs * count * tokens * self.wide
        kept = self.dense if self.cache else 0
        return numbers * TRAINED_NUMBER + (self.largest + kept) * self.wide

    def _stretched(self, what: str, batches: list[Batch]) -> int:
        """What the whole model takes of batches, from what the sketches of two depths take."""
        labels = max(len(b.targets) for b in batches)
        short, long = (getattr(sketch, what)(*_largest(batches), labels) for sketch in (self.short, self.long))
        return int(long + (long - short) * (self.own - self.depths[1]))

    def _sketch(self, dtype: torch.dtype, layers: int, *, tables: bool = False, rank: int = 0) -> Sketch:
        return sketch(
            Shape(self.tuner.model.config), dtype, tables=tables, rank=rank,
            checkpointing=self.settings.gradient_checkpointing, layers=layers, work=self.work,
        )  # fmt: skip

    @property
    def _place(self) -> str:
        return "cuda" if self.gpu else "cpu"

    def _work(self, levels: Sequence[LevelName], shape: tuple[int, int]) -> int:
        """Of quantizing one linear."""
        return self.model.backend.work_bytes(levels, *shape, dtype=self.model.dtype, device=self._place)

    def _made(self, levels: Sequence[LevelName], shape: tuple[int, int]) -> int:
        """Of a weight at all levels."""
        return sum(self.model.backend.storage(level).bytes(*shape) for level in levels)

    def _table_work(self, table: nn.Linear) -> int:
        """A table, two matrices of its inputs, and the work of quantizing it."""
        levels, shape = self.model.table_levels, (table.out_features, table.in_features)
        work = self._work(levels, shape) + (self._made(levels, shape) if self.gpu else 0)
        return work + 2 * 4 * table.in_features**2 + (table.weight.nbytes if self.gpu and not self.kept else 0)

    def _casts(self) -> int:
        """All that lies outside the layers, in the dtype of passes through them."""
        return (0 if self.gpu else self._cast(self.passed)) + self._cast_tables(self.passed)

    def _cast(self, item: int) -> int:
        """Bytes of all that is not searched, cast for passes; none if it is there in that dtype."""
        return self.rest * item // self.stored if item not in (self.stored, self.wide) else 0

    def _cast_tables(self, item: int) -> int:
        """Bytes of searched tables as they were loaded, put in place for passes of the unquantized model."""
        return self.tables * item if (self.gpu and not self.kept) or item != self.stored else 0

    def _reordered(self, item: int) -> int:
        """A CPU with matrix units (AMX) copies a product's weight into another order: the head's is the largest."""
        if self.gpu or item != 2 or not has_matrix_units():
            return 0
        return max(self.largest, self.vocabulary * self.width) * item

    def _placed(self) -> int:
        """Bytes of a layer that is in place for a pass; on the host only if it is cast."""
        there = not self.gpu or self.kept
        return 0 if there and self.passed == self.stored else self.layer_weights * self.passed

    def _levels_sent(self) -> int:
        """Bytes of a layer's linears at all levels, sent once for all batches; on the host they are mapped."""
        if not self.gpu or self.cache:
            return 0
        model, stored = self.model, self.model.backend.storage
        linears = [m for name, m in model.linears.items() if model.layer_of[name] == self.layer]
        return sum(stored(b).bytes(m.out_features, m.in_features) for m in linears for b in model.levels)

    def _pinned(self) -> int:
        """Bytes on the host from which a layer, or a table, is sent to a GPU."""
        tables = [table.linear.weight.nbytes for table in self.model.tables.values()]
        return max([self.layer_weights * self.stored, *tables]) if self.gpu else 0

    def _hidden(self, batches: list[Batch]) -> int:
        """Hidden states of batches, which wait on the host."""
        return sum(b.input_ids.numel() for b in batches) * self.width * self.passed


def _largest(batches: list[Batch]) -> tuple[int, int]:
    """Rows and tokens of the largest batch."""
    rows, tokens = max((b.input_ids.shape for b in batches), key=lambda shape: shape[0] * shape[1])
    return rows, tokens
