"""A model, the rows of a task and the settings of training: any plan put in place, tuned and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qra_eval.quantized import adapters
from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.space import ADAPTER_DTYPE
from qra_eval.tasks.batches import Batch, bucketed, schedule
from qra_eval.tasks.example import SplitName
from qra_eval.tasks.losses import held_out_loss, row_losses
from qra_eval.tasks.rows import Rows
from qra_eval.tuning import training
from qra_search.config import TrainingConfig
from qra_search.evaluation.protocols import Progress
from qra_search.space.space import Plan

LATER = {"hopeless": 0.5, "shared_steps": 0}
"""Settings, and their defaults, that older logs do not name: named by `describe` only if they are otherwise."""


class Workbench:
    """What tuning and measuring share; the evaluator, the prior and the estimates of cost stand on it.

    Args:
        quantized: the model, and the settings of training.
        rows: of the task.

    Attributes:
        space: plans and their bytes; the evaluator may count these otherwise than `quantized.space`.
        init: where adapters start.
    """

    def __init__(self, quantized: QuantizedModel, rows: Rows):
        self.quantized, self.rows = quantized, rows
        self.model, self.tokenizer = quantized.model, quantized.loaded.tokenizer
        self.device, self.space = quantized.device, quantized.space
        self.init: str = quantized.settings.inits[0]

    @property
    def settings(self) -> TrainingConfig:
        """Of training: those of the model, where they may be set later."""
        return self.quantized.settings

    @property
    def progress(self) -> Progress | None:
        """Called with all that takes long before the first evaluation; that of the model."""
        return self.quantized.progress

    def describe(self) -> dict[str, Any]:
        """What losses follow from: model, rows, backend and settings, as plain data."""
        unnamed = {name for name, default in LATER.items() if getattr(self.settings, name) == default}
        return {
            "model": self.quantized.loaded.name,
            "weights": self.quantized.loaded.fingerprint,
            "dtype": str(self.quantized.dtype).removeprefix("torch."),
            "task": self.rows.name,
            "rows": self.rows.hash(calibration=self.trained_rows, validation=self.settings.validation_rows),
            "backend": self.quantized.backend.spec,
            "granularity": self.quantized.granularity,
            "training": {
                **self.settings.model_dump(exclude={"final_steps", "test_rows", *unnamed}),
                "init": self.settings.inits[0],
            },
        }

    # -- a plan in place -----------------------------------------------------------------------
    def apply(self, plan: Plan, seed: int) -> None:
        """Put a plan in place, with adapters as `init` begins them."""
        self.quantized.apply(plan, seed, self.init)

    def train(
        self,
        steps: int,
        seed: int,
        progress: Callable[[int, int, float], None] | None = None,
        hopeless: Callable[[Sequence[float], int], bool] | None = None,
    ) -> training.Trained:
        """Tune the adapters in place for `steps` steps, then round them to what is saved."""
        trained = training.train(
            self.model,
            adapters.trainable(self.quantized.wrapped),
            self.batches(steps, seed),
            learning_rate=self.settings.learning_rate,
            warmup=self.settings.warmup,
            seed=seed,
            device=self.device,
            progress=progress,
            hopeless=hopeless,
        )
        adapters.round_to(self.quantized.wrapped, ADAPTER_DTYPE)
        return trained

    def held_out(self, split: SplitName, rows: int) -> float:
        """Loss in nats a labelled token on the first rows of a split."""
        return held_out_loss(self.model, bucketed(self.rows(split, rows), 2 * self.settings.batch_size), self.device)

    def losses_by_row(self, split: SplitName, rows: int) -> tuple[list[float], list[int]]:
        """Summed loss in nats, and labelled tokens, of each of the first rows of a split."""
        return row_losses(self.model, self.rows(split, rows), 2 * self.settings.batch_size, self.device)

    def untuned_loss(self) -> float:
        """Validation loss of the model as it was loaded, neither quantized nor tuned."""
        with self.quantized.unquantized():
            return self.held_out("validation", self.settings.validation_rows)

    # -- what a training sees ------------------------------------------------------------------
    def batches(self, steps: int, seed: int) -> list[Batch]:
        """The batches of a training: those of fewer steps than a full evaluation are the first of its batches."""
        size, whole = self.settings.batch_size, max(steps, self.settings.steps)
        if steps == 0:
            return []
        return schedule(self.rows("calibration", whole * size), whole, size, seed)[:steps]

    @property
    def trained_rows(self) -> int:
        """Rows that a full evaluation trains on; one, of which only the length matters, if it trains on none."""
        return max(1, self.settings.steps * self.settings.batch_size)

    def evaluation_tokens(self) -> float:
        """Tokens of a full evaluation in units of one forward pass, a backward pass counted as two."""
        settings = self.settings
        rows = self.rows("calibration", self.trained_rows)
        trained = sum(map(len, rows)) * (settings.steps * settings.batch_size) / len(rows)
        held_out = sum(map(len, self.rows("validation", settings.validation_rows)))
        return (1 + training.BACKWARD) * trained + held_out
