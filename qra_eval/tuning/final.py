"""The chosen plan, tuned in full, measured on test data, saved, and checked to load back the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from qra_eval.tuning.samples import before_and_after, sample_answers
from qra_eval.tuning.saved import check_reload, save
from qra_eval.tuning.training import Diverged
from qra_eval.tuning.workbench import Workbench
from qra_search.errors import describe, one_line
from qra_search.evaluation.evaluator import EvaluationFailed
from qra_search.evaluation.protocols import Progress, ReloadFailed
from qra_search.space.space import Plan

SCORED_ROWS = 64
"""Test rows that the task's own figures are of, at most."""
SHORT_ANSWER = 64
"""Tokens of the longest answer that is scored."""
REASON = 500
"""Characters of why a saved plan could not be loaded back."""


@dataclass(frozen=True)
class Tuned:
    """A plan after its full tuning.

    Attributes:
        test_loss: nats a labelled token on test rows that the search never saw.
        metrics: the task's own figures on the first `SCORED_ROWS` test rows, if its answers are short.
        memory_bytes: exact resident bytes.
        folder: where the adapter and the plan were saved; None if they were not.
        reload_difference: largest absolute difference of logits between the tuned model and the reloaded one.
        init: where the adapters started.
        init_losses: validation loss of a full evaluation from each start, if there was a choice.
        row_nats, row_tokens: summed test loss and labelled tokens of each row.
        samples: answers to a few test rows before the tuning and after; see `qra_eval.tuning.samples`.
    """

    plan: Plan
    seed: int
    steps: int
    test_loss: float
    memory_bytes: int
    seconds: float
    train_loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    folder: str | None = None
    reload_difference: float | None = None
    init: str = "default"
    init_losses: dict[str, float] = field(default_factory=dict)
    row_nats: tuple[float, ...] = ()
    row_tokens: tuple[int, ...] = ()
    samples: tuple[dict[str, str], ...] = ()


def tune(
    workbench: Workbench,
    plan: Plan,
    evaluate: Callable[[Plan, int], float],
    *,
    seed: int = 0,
    steps: int | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Tune a plan on the calibration split, measure it on the test split, and save it if a folder is given.

    If the training settings name several initialisations, each is first tried in a full evaluation of the plan, and
    the one of least validation loss is taken.

    Args:
        evaluate: validation loss of a full evaluation of a plan with a seed; raises EvaluationFailed.
        steps: optimizer steps; default: the `final_steps` of the training settings.
        progress: called with `("tune", done, total)`.

    Raises:
        EvaluationFailed: the loss is not finite, or memory does not suffice.
        ReloadFailed: what was saved does not load back to the same logits.
    """
    start = time.perf_counter()
    settings = workbench.settings
    steps = settings.final_steps if steps is None else steps
    each_step = None if progress is None else (lambda done, total, loss: progress("tune", done, total))
    usual = workbench.init
    try:
        init_losses = _try_inits(workbench, plan, evaluate, seed, progress) if len(settings.inits) > 1 else {}
        workbench.init = init = min(init_losses, key=init_losses.__getitem__, default=usual)
        workbench.apply(plan, seed)
        before = [] if folder is None else sample_answers(workbench)
        trained = workbench.train(steps, seed, each_step)
        row_nats, row_tokens = workbench.losses_by_row("test", settings.test_rows)
        loss = sum(row_nats) / max(sum(row_tokens), 1)
        metrics = score(workbench, min(settings.test_rows, SCORED_ROWS))
        tuned = Tuned(
            plan=plan,
            seed=seed,
            steps=steps,
            test_loss=loss,
            memory_bytes=workbench.space.memory_bytes(plan),
            seconds=time.perf_counter() - start,
            train_loss=trained.loss,
            metrics=metrics,
            init=init,
            init_losses=init_losses,
            row_nats=tuple(row_nats),
            row_tokens=tuple(row_tokens),
            samples=() if folder is None else before_and_after(before, sample_answers(workbench)),
        )
        return tuned if folder is None else _saved(workbench, tuned, folder, start)
    except Diverged as error:
        raise EvaluationFailed(f"diverged: {error}") from None
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise EvaluationFailed(f"out of memory: {str(error).splitlines()[0]}") from None
    finally:
        workbench.init = usual


def _saved(workbench: Workbench, tuned: Tuned, folder: str | Path, start: float) -> Tuned:
    """Save what was tuned, and check that it loads back the same."""
    save(workbench, tuned.plan, folder)
    tuned = replace(tuned, folder=str(folder))
    try:
        difference = check_reload(workbench, tuned.plan, folder)
    except Exception as error:  # whatever it is, hours of tuning are measured and saved: they go with the error
        raise ReloadFailed(one_line(describe(error), REASON), tuned) from error
    return replace(tuned, reload_difference=difference, seconds=time.perf_counter() - start)


def _try_inits(
    workbench: Workbench, plan: Plan, evaluate: Callable[[Plan, int], float], seed: int, progress: Progress | None
) -> dict[str, float]:
    """Validation loss of a full evaluation of a plan from each initialisation of the settings, inf if it failed."""
    losses: dict[str, float] = {}
    for init in workbench.settings.inits:
        workbench.init = init
        try:
            losses[init] = evaluate(plan, seed)
        except EvaluationFailed:
            losses[init] = math.inf
        if progress is not None:
            progress("try initialisations", len(losses), len(workbench.settings.inits))
    return losses


def score(workbench: Workbench, rows: int) -> dict[str, float]:
    """The task's own figures on the first test rows, for the plan and adapters in place; empty if answers are long.

    An answer is written token by token, each as dear as a row's whole loss: scoring long ones takes longer than tuning.
    """
    longest = max(int((row.labels >= 0).sum()) for row in workbench.rows("test", rows))
    if longest > SHORT_ANSWER:
        return {}
    settings = workbench.settings
    task = workbench.rows.task
    return task.metrics(
        workbench.model, workbench.tokenizer, task.split("test")[:rows], batch_size=4 * settings.batch_size,
        max_length=settings.max_length + SHORT_ANSWER,
    )  # fmt: skip
