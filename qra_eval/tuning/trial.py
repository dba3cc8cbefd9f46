"""A short tuning at a learning rate, of which only the validation loss is kept; one that is far behind ends early."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qra_eval.tuning.fine_tuner import FineTuner, call_within_memory
from qra_eval.tuning.training import Diverged, TrainerCallback, Training
from qra_search.app.tunable import RateTrial
from qra_search.evaluator import Progress
from qra_search.schemas import Plan

PARTS = 10
"""Parts of a trial whose mean training losses are kept."""
FAR = 1.3
"""Times another trial's training loss over the same steps beyond which a trial ends at its middle."""


class TrialWatch(TrainerCallback):
    """Ends a trial at its middle if it is far behind another, whose mean training losses by part are `beside`."""

    def __init__(self, stage: str, beside: Sequence[float], progress: Progress | None):
        self.stage = stage
        self.beside = beside
        self.progress = progress
        self.losses: list[float] = []

    def on_step_end(self, training: Training) -> bool:
        self.losses = training.losses
        if self.progress is not None:
            self.progress(self.stage, training.step, training.steps)
        if not self.beside or training.step != training.steps // 2:
            return False
        parts = self.average_parts(training.steps)
        return parts[-1] > FAR * self.beside[len(parts) - 1]

    def average_parts(self, steps: int) -> list[float]:
        """Mean training loss of each part that was made, of `steps` steps in all."""
        ends = [round(i * steps / PARTS) for i in range(PARTS + 1)]
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
        except Diverged:
            return RateTrial(rate, steps, len(watch.losses), math.inf)
        curve = watch.average_parts(steps)
        made = len(watch.losses)
        if made == steps:
            loss = tuner.measure_loss("validation", tuner.evaluation.validation_rows)
        else:
            assert beside is not None  # else it would not have ended
            loss = beside.loss * curve[-1] / beside.curve[len(curve) - 1]
        return RateTrial(rate, steps, made, loss if math.isfinite(loss) else math.inf, tuple(curve))

    tuner.switcher.quantize_plan(plan)
    return call_within_memory(tuner, work)
