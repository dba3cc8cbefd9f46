"""A model, the rows of a task and the settings of training: any plan put in place, tuned and measured."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

from qra_eval.models.device import release_freed_memory
from qra_eval.models.loaded import get_position_table_size
from qra_eval.quantized import adapters
from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.space import ADAPTER_DTYPE
from qra_eval.quantized.switcher import PlanSwitcher
from qra_eval.tasks.base import Rows, Task
from qra_eval.tasks.batches import Batch, make_batches, measure_loss, schedule_batches
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tuning import training
from qra_search.app.evaluator import RateTrial, RowCount
from qra_search.errors import EvaluationFailed
from qra_search.evaluator import Progress
from qra_search.schemas import Plan
from qra_search.sections import EvaluationConfig, FinetuneConfig, TrainingConfig

Result = TypeVar("Result")

SCORING_FACTOR = 8
"""Times as many rows as train together are scored together."""
TRIAL_PARTS = 10
"""Parts of a trial whose mean training losses are kept."""
TRIAL_ROWS = 256
"""Validation rows of a trial, at least. The ratio of two trials' losses has a deviation of 7% on 64 rows of Banking77,
and of 3.5% on so many; they take a tenth of the time of 100 steps."""
FAR_BEHIND_FACTOR = 1.3
"""Times another trial's training loss over the same steps beyond which a trial ends at its middle."""


class FineTuner:
    """What tuning and measuring share; the evaluator, the sensitivities and the estimates of cost stand on it.

    A search lowers the `metric`, `loss` or `task`.

    Attributes:
        space: plans and their bytes; the evaluator may count these otherwise than `quantized.space`.
    """

    def __init__(
        self,
        quantized: QuantizedModel,
        rows: Rows,
        evaluation: EvaluationConfig,
        finetune: FinetuneConfig,
        *,
        metric: str = "loss",
    ):
        self.quantized_model = quantized
        self.rows = rows
        self.evaluation = evaluation
        self.finetune = finetune
        self.metric = metric
        self.model = quantized.model
        self.tokenizer = quantized.loaded.tokenizer
        self.device = quantized.device
        self.space = quantized.space
        self.switcher = PlanSwitcher(quantized)
        if self.settings.gradient_checkpointing and self.model.supports_gradient_checkpointing:
            newer = getattr(self.model, "activation_checkpointing_enable", None)  # of transformers 5
            (newer or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    @property
    def settings(self) -> TrainingConfig:
        return self.quantized_model.settings

    @property
    def progress(self) -> Progress | None:
        return self.quantized_model.progress

    def describe(self) -> dict[str, Any]:
        """What losses follow from: model, rows, backend and settings, as plain data."""
        model, task = self.quantized_model, self.rows.task
        metric = {"name": task.judged_by, "source": task.metric_digests.get(str(task.judged_by))}
        return {
            "model": model.loaded.name,
            "weights": model.loaded.fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            "compute": model.asked,  # as set, since `auto` may resolve otherwise on another worker's machine
            "task": self.rows.name,
            "rows": self.rows.hash(train=self.trained_rows, validation=self.evaluation.validation_rows),
            "backend": model.backend.spec,
            "calibration": model.quantization.calibration,
            "calibration_tokens": model.quantization.calibration_tokens,
            "granularity": model.granularity,
            **({} if self.metric == "loss" else {"metric": metric}),
            "training": self.settings.model_dump(),
            "evaluation": self.evaluation.model_dump(),
        }

    # -- a plan in place -----------------------------------------------------------------------
    def train(
        self,
        steps: int,
        seed: int,
        *,
        callback: training.TrainerCallback | None = None,
        batches: Sequence[Batch] | None = None,
        learning_rate: float | None = None,
    ) -> training.Trained:
        """Tune the adapters in place for `steps` steps, and scales if they are to be, then round to what is saved.

        Default are the batches of an evaluation, and the learning rate of the settings.
        """
        settings = self.settings
        if learning_rate is not None:
            settings = settings.model_copy(update={"learning_rate": learning_rate})
        scales_rate = settings.scales_rate / settings.rate
        with self.switcher.train_scales() if settings.scales and steps else nullcontext():
            trained = training.train(
                self.model,
                adapters.make_parameter_groups(self.switcher.wrapped, scales_rate=scales_rate),
                self.get_batches(steps, seed) if batches is None else batches,
                settings,
                seed=seed,
                device=self.device,
                callback=callback or training.TrainerCallback(),
            )
        for factor in adapters.get_named_factors(self.switcher.wrapped).values():
            factor.data = factor.data.to(ADAPTER_DTYPE).to(factor.dtype)  # as they are saved
        return trained

    def measure_loss(self, split: SplitName, rows: int) -> float:
        """Loss in nats a labelled token on the first rows of a split."""
        batches = make_batches(self.rows(split, rows), 2 * self.settings.batch_size)
        loss = measure_loss(self.model, batches, self.device)
        release_freed_memory(self.device)
        return loss

    def measure_objective(self, split: SplitName, rows: int) -> float:
        """The task's own measure on the first rows of a split, lower is better: the loss that the task is judged by,
        or what its score lacks of 1."""
        judged_by = self.rows.task.judged_by
        assert judged_by is not None  # which the evaluator has checked
        scores = self.score_rows(split, rows)[judged_by]
        mean = sum(scores) / len(scores)
        return mean if judged_by.endswith("_loss") else 1.0 - mean

    def score_rows(self, split: SplitName, rows: int) -> dict[str, list[float]]:
        """The task's scores of the first rows of a split, by what is in place; empty if it has none."""
        task = self.rows.task
        examples = task.split(split)[:rows]
        if not examples:
            return {}
        room = self.compute_max_length(self.count_answer_tokens(examples))
        options: dict[str, Any] = {
            "batch_size": SCORING_FACTOR * self.settings.batch_size,
            "max_length": room,
        }
        return task.score_rows(self.model, self.tokenizer, examples, **options)

    def count_answer_tokens(self, examples: Sequence[Example]) -> int:
        """Most tokens of a generated answer; no more than a row has, as longer ones are learnt in part."""
        return min(self.rows.task.max_answer_tokens(examples, self.tokenizer), self.settings.max_length)

    def compute_max_length(self, tokens: int) -> int:
        """Tokens of a row and so many more, for its answer; no more than the model has positions for."""
        asked = self.settings.max_length + tokens
        most = get_position_table_size(self.model)
        return asked if most is None else min(asked, most)

    # -- what a training sees ------------------------------------------------------------------
    def get_batches(self, steps: int, seed: int) -> list[Batch]:
        """The batches of an evaluation: those of fewer steps than a full one are the first of its batches."""
        settings = self.settings
        whole = max(steps, self.evaluation.steps)
        if steps == 0:
            return []
        rows = self.rows("train", whole * settings.rows_a_step)
        number = settings.accumulation
        return schedule_batches(rows, whole * number, settings.batch_size, seed)[: steps * number]

    def get_final_batches(self, steps: int, seed: int) -> list[Batch]:
        """The batches of a full tuning, of the first rows in the seed's order; seed 0 has the task's own."""
        settings = self.settings
        rows = self.rows.shuffle("train", steps * settings.rows_a_step, seed)
        number = steps * settings.accumulation
        return schedule_batches(rows, number, settings.batch_size, seed, drawn=seed > 0)

    @property
    def finetune_steps(self) -> int:
        settings = self.settings
        if self.finetune.epochs is None:
            return self.finetune.steps
        whole, part = divmod(self.finetune.epochs, 1)
        rows = len(self.rows("train", None))
        part = round(part, 9)  # 1.1 epochs are not 0.10000000000000009 more than 1
        batches = whole * math.ceil(rows / settings.batch_size) + math.ceil(part * rows / settings.batch_size)
        return max(1, math.ceil(batches / settings.accumulation))

    @property
    def scored_rows(self) -> int:
        return min(self.finetune.scored_rows, self.finetune.test_rows)

    @property
    def trained_rows(self) -> int:
        """Rows that a full evaluation trains on; one, of which only the length matters, if it trains on none."""
        return max(1, self.evaluation.steps * self.settings.rows_a_step)

    def row_counts(self) -> dict[str, RowCount]:
        """Rows of each split that evaluations and the full tuning ask for together, and how many there are."""
        counts: dict[SplitName, int] = {
            "train": max(self.trained_rows, self.finetune_steps * self.settings.rows_a_step),
            "validation": self.evaluation.validation_rows,
            "test": self.finetune.test_rows,
        }
        found: dict[str, RowCount] = {}
        for split, asked in counts.items():
            if split == "train" and self.finetune.epochs is not None:
                asked = min(asked, len(self.rows("train", None)))  # passes over what there is ask for no more
            task = self.rows.task
            rows = self.rows(split, asked)
            is_row_an_example = type(task).encode is Task.encode  # of running text, none is
            found[split] = RowCount(
                asked,
                min(asked, len(rows)),
                cut=sum(row.cut > 0 for row in rows),
                longest=max(len(row) + row.cut for row in rows),
                available=len(task.split(split)) if is_row_an_example else 0,
            )
        return found

    def count_evaluation_tokens(self) -> float:
        """Tokens of a full evaluation in units of one forward pass, a backward pass counted as two."""
        trained = sum(batch.tokens for batch in self.get_batches(self.evaluation.steps, 0))
        held_out = sum(map(len, self.rows("validation", self.evaluation.validation_rows)))
        return (1 + training.BACKWARD_COST) * trained + held_out


def convert_out_of_memory(tuner: FineTuner, work: Callable[[], Result]) -> Result:
    """What `work` returns; raises EvaluationFailed if memory does not suffice, and no plan is in place then."""
    try:
        return work()
    except RuntimeError as error:
        # CUDA's libraries, which allocate by themselves, say so in words.
        words = ("out of memory", "ALLOC_FAILED")
        if not isinstance(error, torch.OutOfMemoryError) and not any(some in str(error) for some in words):
            raise
        reason = str(error).splitlines()[0]
    # Only here: within the `except` block the traceback holds the frames of the failed step, with its whole graph.
    tuner.switcher.unquantize()
    gc.collect()
    torch.cuda.empty_cache()
    raise EvaluationFailed(
        f"out of memory ({reason}): lower training.batch_size or training.max_length, or set "
        "training.gradient_checkpointing"
    )


# -- trials of learning rates ----------------------------------------------------------------
class TrialWatch(training.TrainerCallback):
    """Ends a trial at its middle if it is far behind another, whose mean training losses by part are `beside`."""

    def __init__(self, stage: str, beside: Sequence[float], progress: Progress | None):
        self.stage = stage
        self.beside = beside
        self.progress = progress
        self.losses: list[float] = []

    def on_step_end(self, state: training.Training) -> bool:
        self.losses = state.losses
        if self.progress is not None:
            self.progress(self.stage, state.step, state.steps)
        if not self.beside or state.step != state.steps // 2:
            return False
        parts = self.average_losses_by_part(state.steps)
        return parts[-1] > FAR_BEHIND_FACTOR * self.beside[len(parts) - 1]

    def average_losses_by_part(self, steps: int) -> list[float]:
        """Mean training loss of each part that was made, of `steps` steps in all."""
        ends = sorted({round(i * steps / TRIAL_PARTS) for i in range(TRIAL_PARTS + 1)})
        parts = (self.losses[a:b] for a, b in zip(ends, ends[1:], strict=False) if b <= len(self.losses))
        return [sum(part) / len(part) for part in parts]


def try_rate(
    tuner: FineTuner,
    plan: Plan,
    rate: float,
    steps: int,
    beside: RateTrial | None = None,
    progress: Progress | None = None,
) -> RateTrial:
    """Tune a plan briefly at a learning rate; see `TunableEvaluator.try_rate`."""
    watch = TrialWatch(f"try learning rate {rate:g}", beside.curve if beside else (), progress)

    def work() -> RateTrial:
        tuner.switcher.put_plan(plan, 0)
        try:
            tuner.train(
                steps, 0, callback=watch, batches=tuner.get_final_batches(steps, 0), learning_rate=rate
            )
        except training.Diverged:
            return RateTrial(rate, steps, len(watch.losses), math.inf)
        curve = watch.average_losses_by_part(steps)
        made = len(watch.losses)
        if made == steps:
            loss = tuner.measure_loss("validation", max(TRIAL_ROWS, tuner.evaluation.validation_rows))
        else:
            assert beside is not None  # else it would not have ended
            loss = beside.loss * curve[-1] / beside.curve[len(curve) - 1]
        return RateTrial(rate, steps, made, loss if math.isfinite(loss) else math.inf, tuple(curve))

    tuner.switcher.quantize_plan(plan)
    return convert_out_of_memory(tuner, work)
