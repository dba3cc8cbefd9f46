"""What every phase of a run takes in memory at its peak, from the shapes of the model and of the rows alone.

Phases are those of a run: `load`, `quantize`, `sensitivities`, `search` (an evaluation), `tune`, `reload` (the
check of what was saved) and `export`. Activations are counted by running the model's own code on fake tensors
(`qra_eval.costs.sketch`); the rest are sums over weights. On a CPU all is host memory, and files that are mapped (the
checkpoint, the bank) are not counted: the system lets their pages go. On a GPU the host holds the hidden states that
wait, and libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from qra_backends.storage import ceil_div

from qra_eval.costs.sizes import Sizes, find_largest_batch
from qra_eval.quantized.build import count_workers
from qra_eval.quantized.calibration import get_expert_kind
from qra_eval.quantized.passes import LABELS, SEGMENT
from qra_eval.sensitivities.measure import choose_probes, sample_probe_batch
from qra_eval.tasks.batches import CHUNK, Batch, make_batches
from qra_eval.tasks.example import SplitName
from qra_eval.tuning.final import CHECKED_TOKENS
from qra_eval.tuning.fine_tuner import SCORED_TOGETHER, FineTuner

LIBRARIES = 372 << 20
"""Bytes of python, torch, transformers and the rest before any weight, in private memory."""
RELOAD_LIBRARIES = 356 << 20
"""The same where nothing but a saved model is loaded."""
TOKEN_BYTES = 800
"""Bytes that a tokenizer takes of a token: Qwen2.5's 656 to 877, SmolLM2's 256."""
CUDA_LIBRARIES = 2 << 30
"""The same on the host of a GPU."""
CUDA_CONTEXT = 600 << 20
"""Bytes of a GPU that its driver and its libraries take."""


@dataclass(frozen=True)
class Peak:
    """Bytes at the height of a phase."""

    device: int
    host: int


def estimate_peaks(
    tuner: FineTuner, budget: int | None = None, *, gpu: bool | None = None
) -> dict[str, Peak]:
    """The peak of every phase; of layers over several devices, on one that holds them all.

    Args:
        budget: bytes of the largest plan that will be put in place, if not the largest of the space.
        gpu: whether the device is a GPU with no room for dequantized weights; None: the device and the room at hand.
    """
    run, evaluation, finetune = _Run(tuner, budget, gpu), tuner.evaluation, tuner.finetune
    tested: tuple[SplitName, int] = ("test", finetune.test_rows)
    looked_at: tuple[SplitName, int] = ("validation", evaluation.validation_rows)
    return {
        "load": run.make_peak(),
        "quantize": run.make_peak(*run.count_quantization_bytes()),
        "sensitivities": run.make_peak(*run.count_sensitivity_bytes()),
        "search": run.make_peak(
            run.count_training_bytes(
                tuner.get_batches(evaluation.steps, 0),
                *looked_at,
                scored=0 if tuner.metric == "loss" else evaluation.validation_rows,
            )
        ),
        "tune": run.make_peak(
            max(
                run.count_training_bytes(
                    tuner.get_final_batches(tuner.finetune_steps, 0), *tested, scored=finetune.scored_rows
                ),
                0
                if finetune.monitor == "loss"
                else run.count_training_bytes([], *looked_at, scored=looked_at[1]),
                run.count_untuned_bytes(*tested),
            )
        ),
        "reload": run.make_peak(run.count_reload_bytes(), libraries=RELOAD_LIBRARIES),
        "export": Peak(0, run.count_export_bytes()),
    }


class _Run(Sizes):
    """What each phase adds to what is always there: bytes on the device and bytes on the host."""

    def make_peak(self, device: int = 0, host: int = 0, *, libraries: int = LIBRARIES) -> Peak:
        """Peak of a phase that adds these bytes on the device and the host to what is always allocated."""
        if self.gpu:
            return Peak(CUDA_CONTEXT + self.rest * self.wide // self.stored + device, CUDA_LIBRARIES + host)
        copied = self.rest * self.wide // self.stored if self.wide != self.stored else 0
        tokenizer = self.tuner.tokenizer
        tokens = (
            self.vocabulary if tokenizer is None else len(tokenizer)
        )  # None: a config is all that is there
        return Peak(0, libraries + TOKEN_BYTES * tokens + copied + device + host)

    def count_quantization_bytes(self) -> tuple[int, int]:
        """The pass of the calibration rows, if there is one; then the work on linears that are quantized at once."""
        model, backend, levels = self.model, self.model.backend, self.model.levels
        calibrated = any(map(backend.is_calibrated, levels))
        inputs = self.group_inputs()
        shapes = [shape for some in inputs.values() for shape in some]
        units = list(inputs.values()) if calibrated else [[shape] for shape in shapes]
        count = count_workers(backend, len(units), self.device)

        def count_unit_bytes(unit: list[tuple[int, int]]) -> int:
            # What was made of a linear is on a GPU until all levels are: then it goes to the host.
            work = max(
                self.count_linear_work_bytes(levels, shape)
                + (self.count_level_bytes(levels, shape) if self.gpu else 0)
                for shape in unit
            )
            return work + (4 * unit[0][1] ** 2 if calibrated else 0)

        work = sum(sorted(map(count_unit_bytes, units), reverse=True)[:count])
        made = sum(self.count_level_bytes(levels, shape) for shape in shapes)
        tables = model.tables.values()
        made = max(
            made,
            sum(self.count_level_bytes(model.table_levels, (t.out_features, t.in_features)) for t in tables),
        )
        work += max(rows * columns for rows, columns in shapes) * self.stored if self.gpu else 0
        table = max(map(self.count_table_work_bytes, tables), default=0)
        made += self.count_pinned_bytes()
        if not calibrated:
            return max(work, table), made
        passing, waiting = self.count_calibration_bytes()
        return max(passing, self.count_moment_bytes() + work, table), made + waiting

    def group_inputs(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """The shapes (out, in) of a layer's linears, together those that share an input, and so a moment.

        An input's width stands for the input.
        """
        inputs: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for name, m in self.model.linears.items():
            if self.model.layer_of[name] == self.layer:
                key = (name.rpartition(".")[0], m.in_features)
                inputs.setdefault(key, []).append((m.out_features, m.in_features))
        return inputs

    def count_moment_bytes(self) -> int:
        return 4 * sum(width**2 for _, width in self.group_inputs())

    def count_calibration_bytes(self) -> tuple[int, int]:
        """Rows forward and backward, layer by layer: inputs of layers wait on the host, as the model is stored.

        Of one layer there are its activations, its moments, and then a linear's change at a level.
        """
        batches = self.model.calibration_batches()
        experts = 4 * sum(
            w**2 for parent, w in self.group_inputs() if get_expert_kind(f"{parent}.") != f"{parent}."
        )
        both = self.bare.count_calibration_bytes(self.layer_sketched, *find_largest_batch(batches))
        both += experts + self.count_placed_layer_bytes()
        labels = max(len(b.targets) for b in batches)
        head = min(LABELS, labels) * self.vocabulary * (2 * self.wide + 3 * 4)
        change = self.count_moment_bytes() + 3 * 4 * self.largest
        outside = (0 if self.gpu else self.count_cast_bytes(self.passed)) + self.count_cast_table_bytes(
            self.passed
        )
        tokens = sum(batch.input_ids.numel() for batch in batches)
        hidden = tokens * self.width * self.passed
        segments, within = ceil_div(self.layers, SEGMENT) - 1, min(SEGMENT, self.layers)
        return (
            8 * tokens + max(outside + head, both, change),
            2 * hidden
            + (segments + within) * hidden * self.stored // self.passed
            + self.count_pinned_bytes(),
        )

    def count_sensitivity_bytes(self) -> tuple[int, int]:
        """Probes in float32; before them the pass of rows, if nothing is calibrated."""
        probe = sample_probe_batch(self.tuner)
        sketched = self.sketch(torch.float32, self.depths[1])
        forward = sketched.count_layer_bytes(self.layer_sketched, *probe.input_ids.shape)
        logits = len(probe.targets) * self.vocabulary * 4 * 5
        at_level = (
            self.vocabulary * self.width * self.wide if self.model.tables else 0
        )  # a table, dequantized
        wider = self.count_cast_bytes(4) + self.count_cast_table_bytes(4) + at_level
        groups = (
            sum(m.out_features * m.in_features for m in group.linears)
            for group in self.model.space.groups
            if not group.is_embedding
        )
        beside = (max(groups) - self.largest) * self.wide  # a group's other linears, dequantized
        probing = wider + max(self.layer_weights * 4 + forward + self.largest * 8 + beside, logits)
        flows = (
            len(choose_probes(self.model.space)) + len(self.model.tables) * len(self.model.table_levels) + 1
        )
        waiting = probe.input_ids.numel() * self.width * 4 * flows
        if self.gpu:
            waiting += self.count_pinned_bytes()
        passing = (
            (0, 0)
            if any(map(self.model.backend.is_calibrated, self.model.levels))
            else self.count_calibration_bytes()
        )
        return max(passing[0], probing), max(passing[1], waiting)

    def count_training_bytes(
        self, batches: list[Batch], split: SplitName, held_out: int, *, scored: int
    ) -> int:
        """Training a plan on batches, measuring it, or generating the answers of so many rows."""
        trained = 0
        if batches and self.rank:
            trained = self.count_batch_bytes(batches, training=True)
        if batches:
            trained += self.count_scale_bytes(batches)
        rows = self.tuner.rows(split, held_out)
        measured = self.count_batch_bytes(make_batches(rows, 2 * self.settings.batch_size), training=False)
        highest = max(trained, measured, self.count_generation_bytes(split, min(scored, held_out)))
        return self.count_resident_bytes() + highest + self.count_reordered_weight_bytes(self.wide)

    def count_generation_bytes(self, split: SplitName, scored: int) -> int:
        """A pass over padded prompts, whose mask is a matrix for each row, with the keys and values of all layers."""
        tuner, task = self.tuner, self.tuner.rows.task
        if not scored or task.judged_by is None or tuner.tokenizer is None:
            return 0
        rows = min(scored, SCORED_TOGETHER * tuner.device_batch_size)
        longest = max(map(len, tuner.rows(split, scored)))
        answer = tuner.count_answer_tokens(task.split(split)[:scored])
        text = tuner.model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = heads * (getattr(text, "head_dim", None) or self.width // text.num_attention_heads)
        kept = 2 * self.layers * rows * (longest + answer) * width * self.wide
        mask = rows * longest**2 * self.wide
        return kept + mask + self.count_pass_bytes(rows, longest, rows)

    def count_untuned_bytes(self, split: SplitName, rows: int) -> int:
        """A GPU's pass of the model as it was loaded, beside which the tuned one is seen: searched tables visit it."""
        if not self.gpu:
            return 0  # little beside a training there
        batches = make_batches(self.tuner.rows(split, rows), 2 * self.settings.batch_size)
        forward = self.bare.count_layer_bytes(self.layer_sketched, *find_largest_batch(batches))
        logits = (max(len(b.targets) for b in batches) * self.passed + CHUNK * 3 * 4) * self.vocabulary
        return self.count_cast_table_bytes(self.passed) + max(
            self.count_placed_layer_bytes() + forward, logits
        )

    def count_reload_bytes(self) -> int:
        """What was saved is loaded, then computes the logits of a short row with one linear dequantized at a time.

        peft makes factors in float32 where a base has integers for weights; they are cast when all are there.
        """
        saved = self.sketch(self.model.dtype, self.depths[1], tables=self.tables > 0, rank=self.rank)
        computing = self.adapters * self.stored + saved.count_pass_bytes(
            1, CHECKED_TOKENS, CHECKED_TOKENS, training=False
        )
        return (self.packed if self.gpu else 0) + max(4 * self.adapters, computing)

    def count_export_bytes(self) -> int:
        """On the host, whatever the device: the saved model with its tables dequantized, and what is read back of it.

        Adapters are counted as they are made, in float32.
        """
        tokens = self.vocabulary if self.tuner.tokenizer is None else len(self.tuner.tokenizer)
        model = self.packed + self.rest + 4 * self.adapters
        return RELOAD_LIBRARIES + TOKEN_BYTES * tokens + 2 * model + self.tables * self.stored
