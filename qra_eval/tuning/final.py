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
from qra_eval.tasks.encoding import Encoded
from qra_eval.tasks.losses import row_losses
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.full import FullTuning
from qra_eval.tuning.out_of_memory import unless_out_of_memory
from qra_eval.tuning.processes import ALONE, Processes
from qra_eval.tuning.saved import check_reload, save
from qra_eval.tuning.training import Diverged
from qra_search.errors import describe, one_line
from qra_search.evaluation.evaluator import Progress, StepFigures
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 64
"""Tokens of a sample answer, at most."""
REASON = 500
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
    length = tuner.finetune_steps if steps is None else steps
    start = time.perf_counter()

    def work() -> TuningRecord:
        return _tuned(tuner, plan, seed, length, folder, save_base, on_step, progress, processes)

    try:
        return unless_out_of_memory(tuner, work)
    except Diverged as error:
        size, seconds = tuner.space.of(plan).memory_bytes(plan), time.perf_counter() - start
        return TuningRecord(plan, seed, length, size, seconds, failed=f"diverged: {error}")


def _tuned(
    tuner: FineTuner,
    plan: Plan,
    seed: int,
    steps: int,
    folder: Path | None,
    save_base: bool,
    on_step: Callable[[int, StepFigures], None] | None,
    progress: Progress | None,
    processes: Processes,
) -> TuningRecord:
    start, finetune, saves = time.perf_counter(), tuner.finetune, folder is not None and processes.rank == 0
    processes.alike(lambda: tuner.apply(plan, seed))
    shown = finetune.sample_answers if saves and save_base else 0
    before = processes.alike(lambda: sample_answers(tuner, shown))
    batches = tuner.final_batches(steps, seed)
    identity = _identity(tuner, plan, seed, steps, batches)
    watch = FullTuning(finetune, lambda: _validation_loss(tuner, processes), identity, folder, on_step, processes)
    each_step = None if progress is None else (lambda done, total, loss: progress(_stage(watch), done, total))
    with watch.saving():
        tuner.train(steps, seed, each_step, watch=watch, batches=batches, processes=processes)
    rows = tuner.rows("test", finetune.test_rows)
    nats, tokens = _row_losses(tuner, rows, processes)
    if not math.isfinite(sum(nats)):
        raise Diverged(f"test loss is {sum(nats)} after step {steps} of {steps}")
    after = processes.alike(lambda: sample_answers(tuner, shown))
    scores = processes.alike(lambda: row_scores(tuner) if processes.rank == 0 else {})
    error = _save(tuner, plan, folder, save_base) if folder is not None and saves else ""
    return TuningRecord(
        plan=plan,
        seed=seed,
        steps=steps,
        memory_bytes=tuner.space.of(plan).memory_bytes(plan),
        seconds=time.perf_counter() - start + watch.earlier_seconds,
        row_nats=nats,
        row_tokens=tokens,
        row_scores=scores,
        samples=tuple(
            {**asked, "before": old, "after": new} for (asked, old), (_, new) in zip(before, after, strict=True)
        ),
        reload_error=error,
    )


def _save(tuner: FineTuner, plan: Plan, folder: Path, save_base: bool) -> str:
    """Save what was tuned; returns why it does not load back the same, if its base is saved and that is known."""
    save(tuner, plan, folder, base=save_base)
    if not save_base or not any(plan.ranks):
        return ""
    try:
        check_reload(tuner, plan, folder)
    except Exception as error:  # whatever it is, hours of tuning are measured and saved: the record says it
        log.warning("the adapter in %s does not load back as it was tuned: %s", folder, describe(error))
        return one_line(describe(error), REASON)
    return ""


def untuned(tuner: FineTuner) -> TuningRecord | None:
    """The model as it was loaded, measured on the test split as what is tuned is.

    The task's own figures only if weights are kept ready: else layers are on the device in turn, for every token.
    """
    start, space = time.perf_counter(), tuner.space.unquantized
    plan = space.uniform(UNQUANTIZED_BITS, 0)
    if plan is None:
        return None

    def work() -> TuningRecord:
        with tuner.switcher.unquantized():
            rows = tuner.rows("test", tuner.finetune.test_rows)
            nats, tokens = row_losses(tuner.model, rows, 2 * tuner.rows_together, tuner.device)
            scores = row_scores(tuner) if tuner.quantized.materialised else {}
            if not tuner.quantized.materialised and tuner.finetune.scored_rows and tuner.rows.task.judged_by:
                log.warning("answers of the untuned model are not scored: its weights do not fit into memory together")
        seconds = time.perf_counter() - start
        return TuningRecord(plan, 0, 0, space.memory_bytes(plan), seconds, tuple(nats), tuple(tokens), scores)

    return unless_out_of_memory(tuner, work)


def _identity(tuner: FineTuner, plan: Plan, seed: int, steps: int, batches: Sequence[Batch]) -> dict[str, Any]:
    """What a tuning follows from: a checkpoint with another identity is of another tuning."""
    finetune, digest = tuner.finetune, hashlib.sha256()
    for batch in batches:
        digest.update(batch.input_ids.numpy().tobytes() + batch.positions.numpy().tobytes())
    return {
        **tuner.describe(),
        "plan": plan.to_dict(),
        "seed": seed,
        "steps": steps,
        "batches": digest.hexdigest(),
        "evaluate_every": finetune.evaluate_every,
        "patience": finetune.patience,
    }


def _stage(watch: FullTuning) -> str:
    """What a tuning is called while it runs."""
    return f"tune, resumed after step {watch.resumed_after}" if watch.resumed_after else "tune"


def _validation_loss(tuner: FineTuner, processes: Processes) -> float:
    """As an evaluation measures it, amid a training."""
    loss = tuner.held_out("validation", tuner.evaluation.validation_rows, processes)
    tuner.model.train()
    return loss


def _row_losses(
    tuner: FineTuner, rows: Sequence[Encoded], processes: Processes
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Summed loss and labelled tokens of each row, rank r of n passing rows r, r + n, ..."""
    own = slice(processes.rank, None, processes.size)
    found = processes.alike(lambda: row_losses(tuner.model, rows[own], 2 * tuner.rows_together, tuner.device))
    nats, tokens = ([0.0] * len(rows) for _ in found)
    nats[own], tokens[own] = found
    return tuple(processes.total(*nats)), tuple(map(int, processes.total(*tokens)))


def sample_answers(tuner: FineTuner, count: int) -> list[tuple[dict[str, str], str]]:
    """The first test rows that have a prompt (`prompt`, `wanted`), and greedy answers by what is in place."""
    if count == 0:
        return []
    task = tuner.rows.task
    examples = [example for example in task.split("test")[:count] if example.prompt.strip()]
    answers = task.answers(
        tuner.model, tuner.tokenizer, examples, SAMPLE_TOKENS, max_length=tuner.with_room(SAMPLE_TOKENS)
    )
    prompts = [task.prompt(example, tuner.tokenizer) for example in examples]
    return [
        ({"prompt": prompt, "wanted": example.answer}, answer)
        for prompt, example, answer in zip(prompts, examples, answers, strict=True)
    ]


def row_scores(tuner: FineTuner) -> dict[str, tuple[float, ...]]:
    """The task's scores of what is in place, by metric, on the first test rows."""
    scores = tuner.score_rows("test", min(tuner.finetune.scored_rows, tuner.finetune.test_rows))
    return {name: tuple(rows) for name, rows in scores.items()}
