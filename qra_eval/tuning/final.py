"""The chosen plan, tuned in full, measured on test data, saved, and checked to load back the same."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qra_eval.tasks.batches import Batch
from qra_eval.tasks.example import Example
from qra_eval.tasks.losses import measure_row_losses
from qra_eval.tuning.fine_tuner import FineTuner, retry_with_less_memory
from qra_eval.tuning.full import FullTuning
from qra_eval.tuning.processes import ALONE, Processes
from qra_eval.tuning.saved import check_reload, save
from qra_eval.tuning.training import Diverged
from qra_search.app.tunable import StepFigures
from qra_search.errors import describe, one_line
from qra_search.evaluator import Progress
from qra_search.schemas import Plan, TuningRecord
from qra_search.space.memory import UNQUANTIZED_BITS

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 64
"""Tokens of a sample answer, at most."""
REASON_CHARACTERS = 500
"""Characters of why a saved plan could not be loaded back."""


def tune(
    tuner: FineTuner,
    plan: Plan,
    *,
    seed: int = 0,
    steps: int | None = None,
    folder: Path | None = None,
    save_base: bool = True,
    on_step: Callable[[int, StepFigures], None] | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> TuningRecord:
    """Tune a plan on the training split, measure it on the test split, and save it if a folder is given.

    An interrupted tuning is resumed from the checkpoint in its folder. Arguments and errors are those of
    `Evaluator.tune`; `progress` is called with `("tune", done, total)`, where the name says if it was resumed.
    """
    start = time.perf_counter()
    finetune = tuner.finetune
    leads = processes.rank == 0
    steps = tuner.finetune_steps if steps is None else steps
    size = tuner.space.find_space(plan).memory_bytes(plan)
    batches = tuner.get_final_batches(steps, seed)
    rows = tuner.evaluation.validation_rows
    task = tuner.rows.task
    keeps = folder is not None and save_base and leads
    samples = select_samples(tuner, finetune.sample_answers if keeps else 0)
    options: dict[str, Any] = {"max_length": tuner.compute_max_length(SAMPLE_TOKENS)}

    def validate() -> dict[str, float]:
        figures = {"validation_loss": tuner.measure_loss("validation", rows, processes)}
        if finetune.monitor == "task":
            own = processes.run_together(lambda: leads and tuner.measure_objective("validation", rows))
            (figures["validation_objective"],) = processes.sum_values(own)
        tuner.model.train()
        return figures

    def answer_samples() -> list[str]:
        if not samples:
            return []
        return task.answer_examples(tuner.model, tuner.tokenizer, samples, SAMPLE_TOKENS, **options)

    def work() -> TuningRecord:
        processes.run_together(lambda: tuner.switcher.put_plan(plan, seed))
        before = processes.run_together(answer_samples)
        identity = _make_identity(tuner, plan, seed, steps, batches)

        def finish_step(step: int, figures: StepFigures) -> None:
            if on_step is not None:
                on_step(step, figures)
            if progress is not None:
                resumed = f", resumed after step {full.resumed_after}" if full.resumed_after else ""
                progress(f"tune{resumed}", step, steps)

        full = FullTuning(finetune, validate, identity, folder, finish_step, processes)
        with full.save_on_interrupt():
            tuner.train(steps, seed, callback=full, batches=batches, processes=processes)
        nats, tokens = _measure_test_rows(tuner, processes)
        if not math.isfinite(sum(nats)):
            raise Diverged(f"test loss is {sum(nats)} after step {steps} of {steps}")
        validation_loss = tuner.measure_loss("validation", rows, processes)
        after = processes.run_together(answer_samples)
        scores = processes.run_together(lambda: score_test_rows(tuner) if leads else {})
        error = _save(tuner, plan, folder, save_base) if folder is not None and leads else ""
        seconds = time.perf_counter() - start + full.earlier_seconds
        shown = []
        for example, old, new in zip(samples, before, after, strict=True):
            prompt = task.make_prompt(example, tuner.tokenizer)
            shown.append({"prompt": prompt, "wanted": example.answer, "before": old, "after": new})
        figures: dict[str, Any] = {"validation_loss": validation_loss, "reload_error": error}
        if leads:
            figures["commonest_scores"] = task.score_commonest(task.split("test")[: tuner.scored_rows])
            figures["metric_digests"] = task.metric_digests
        return TuningRecord(plan, seed, steps, size, seconds, nats, tokens, scores, tuple(shown), **figures)

    try:
        return retry_with_less_memory(tuner, work)
    except Diverged as error:
        return TuningRecord(plan, seed, steps, size, time.perf_counter() - start, failed=f"diverged: {error}")


def measure_untuned(tuner: FineTuner) -> TuningRecord | None:
    """The model as it was loaded, measured on the test split as what is tuned is.

    The task's own figures only if weights are kept ready: else layers are on the device in turn, for every token.
    """
    start = time.perf_counter()
    space = tuner.space.unquantized
    plan = space.uniform(UNQUANTIZED_BITS, 0)
    if plan is None:
        return None

    def work() -> TuningRecord:
        with tuner.switcher.use_unquantized():
            nats, tokens = _measure_test_rows(tuner, ALONE)
            scores = score_test_rows(tuner) if tuner.quantized_model.keeps_dequantized else {}
        unscored = ""
        if tuner.finetune.scored_rows and tuner.rows.task.judged_by and not scores:
            unscored = "answers of the untuned model are not scored: its weights do not fit into memory"
            log.warning(unscored)
        seconds = time.perf_counter() - start
        size = space.memory_bytes(plan)
        return TuningRecord(plan, 0, 0, size, seconds, nats, tokens, scores, unscored=unscored)

    return retry_with_less_memory(tuner, work)


def _save(tuner: FineTuner, plan: Plan, folder: Path, save_base: bool) -> str:
    """Save what was tuned; returns why it does not load back the same, if its base is saved and that is known."""
    save(tuner, plan, folder, base=save_base)
    if not save_base or not any(plan.ranks):
        return ""
    try:
        check_reload(tuner, plan, folder)
    except Exception as error:  # whatever it is, hours of tuning are measured and saved: the record says it
        log.warning("the adapter in %s differs from the tuned one when reloaded: %s", folder, describe(error))
        return one_line(describe(error), REASON_CHARACTERS)
    return ""


def _make_identity(
    tuner: FineTuner, plan: Plan, seed: int, steps: int, batches: Sequence[Batch]
) -> dict[str, Any]:
    """What a tuning follows from: a checkpoint with another identity is of another tuning."""
    finetune = tuner.finetune
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch.input_ids.numpy().tobytes() + batch.positions.numpy().tobytes())
    return {
        **tuner.describe(),
        "plan": plan.to_dict(),
        "seed": seed,
        "steps": steps,
        "batches": digest.hexdigest(),
        "evaluate_every": finetune.evaluate_every,
        "monitor": finetune.monitor,
        "patience": finetune.patience,
    }


def _measure_test_rows(tuner: FineTuner, processes: Processes) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Summed loss and labelled tokens of each test row, rank r of n passing rows r, r + n, ..."""
    rows = tuner.rows("test", tuner.finetune.test_rows)
    own = slice(processes.rank, None, processes.size)
    together = 2 * tuner.device_batch_size
    found = processes.run_together(lambda: measure_row_losses(tuner.model, rows[own], together, tuner.device))
    nats, tokens = ([0.0] * len(rows) for _ in found)
    nats[own], tokens[own] = found
    return tuple(processes.sum_values(*nats)), tuple(map(int, processes.sum_values(*tokens)))


def select_samples(tuner: FineTuner, count: int) -> list[Example]:
    """So many test rows, no two with one wanted answer."""
    rows = [row for row in tuner.rows.task.split("test")[: tuner.finetune.test_rows] if row.prompt.strip()]
    rows = list({row.answer: row for row in reversed(rows)}.values())[::-1]
    shown = min(count, len(rows))
    return [rows[i * len(rows) // shown] for i in range(shown)]


def score_test_rows(tuner: FineTuner) -> dict[str, tuple[float, ...]]:
    """The task's scores of what is in place, by metric, on the first test rows."""
    scores = tuner.score_rows("test", tuner.scored_rows)
    return {name: tuple(rows) for name, rows in scores.items()}
