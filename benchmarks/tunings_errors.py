"""How far the formula of real tunings is off on tunings that it was not fitted to, beside the noise between seeds.

    python -m benchmarks.tunings_errors
    python -m benchmarks.tunings_errors --page docs/table-of-tunings.md

Held out in turn: plans (a twentieth of them at a time, with all their rows), a learning rate, a length. With a Gaussian
process on what the formula leaves, and without.
"""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from benchmarks.study.finetunes_table import fill_page
from qra_eval.landscapes.tunings import (
    TASKS,
    TuningTraits,
    compute_row_traits,
    estimate_noise,
    fit_formula,
    read_rows,
    read_task,
)
from qra_search.surrogates.gp import fit_loss_gp

FOLDS = 20
SAFE_RATE = 0.004
"""The largest learning rate at which no tuning of the table collapsed."""
MAX_HELD_OUT = 0.75
"""A value that more of the rows have is not held out: too few are left to learn from."""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="put the table into a page, between its marks")
    parser.add_argument("--without-process", action="store_true", help="leave the Gaussian process out")
    options = parser.parse_args()
    lines = [
        "| task | held out | tunings | formula | median | rates to 0.004 | with a process | nats | points |",
        "|---|" + "---|" * 8,
    ]
    for task in TASKS:
        lines += make_task_lines(task, with_process=not options.without_process)
    print(*lines, sep="\n")
    if options.page:
        fill_page(options.page, "errors", lines)


def make_task_lines(task: str, *, with_process: bool) -> list[str]:
    """The lines of one task: errors by what was held out, then the noise."""
    rows = read_rows(task)
    done = [row for row in rows if "test_loss" in row]
    if len(done) < FOLDS:
        return [f"| {task} | | {len(done)} | too few | | | | | |"]
    traits, losses = compute_row_traits(*read_task(task), done), np.array([row["test_loss"] for row in done])
    right, answered = np.array([row["right"] for row in done]), done[0]["answered"]
    lines = []
    for name, key in (("plan", "plan"), ("rate", "learning_rate"), ("length", "steps")):
        formula, process, points = (np.full(len(done), np.nan) for _ in range(3))
        for held_out in iterate_folds(np.array([row[key] for row in done]), FOLDS):
            seen = ~held_out
            fitted = fit_formula(traits[seen], losses[seen])
            formula[held_out] = fitted.predict(traits[held_out])
            if with_process:
                process[held_out] = predict_with_process(fitted, traits, losses, held_out)
            answers = fit_answers(losses[seen], right[seen], answered)
            points[held_out] = 100 * answers.predict(formula[held_out])
        known = ~np.isnan(formula)
        nats = np.median(np.abs(np.exp(formula[known]) - losses[known]))
        off = compute_rms(points[known] - 100 * right[known] / answered)
        errors, of_process = formula - np.log(losses), process - np.log(losses)
        safe = known & (np.array([row["learning_rate"] for row in done]) <= SAFE_RATE)
        shares = [compute_rms(errors[known]), np.median(np.abs(errors[known])), compute_rms(errors[safe])]
        shares += [compute_rms(of_process[known])] if with_process else []
        cells = [f"{100 * share:.1f}%" for share in shares] + [""] * (not with_process)
        lines.append(f"| {task} | {name} | {known.sum()} | {' | '.join(cells)} | {nats:.3f} | {off:.1f} |")
    noise = ", ".join(f"{100 * value:.1f}% at {steps}" for steps, value in estimate_noise(done).items())
    lines.append(f"| {task} | noise between seeds | {len(done)} | {noise} | | | | | |")
    return lines


@dataclass(frozen=True)
class AnswersFormula:
    """Share of right answers as a logistic function of the log loss, a parabola."""

    coefficients: np.ndarray

    def predict(self, log_losses: np.ndarray) -> np.ndarray:
        """Shares (N,), from 0 to 1."""
        return np.asarray(expit(np.polyval(self.coefficients, log_losses)))


def fit_answers(losses: np.ndarray, right: np.ndarray, answered: int) -> AnswersFormula:
    """Least squares on logits; each side counts half an answer more, so that none is infinite.

    Args:
        losses: test losses (N,); right: right answers (N,).
    """
    logits = logit((right + 0.5) / (answered + 1.0))
    return AnswersFormula(np.polyfit(np.log(losses), logits, 2))


def iterate_folds(values: np.ndarray, folds: int) -> Iterator[np.ndarray]:
    """Masks (N,) of the rows that are held out together: those of one value, or of a fold of the values."""
    distinct = np.unique(values)
    for part in np.array_split(np.random.default_rng(0).permutation(distinct), min(folds, len(distinct))):
        held_out = np.isin(values, part)
        if held_out.mean() <= MAX_HELD_OUT:
            yield held_out


def predict_with_process(
    fitted: Any, traits: TuningTraits, losses: np.ndarray, held_out: np.ndarray
) -> np.ndarray:
    """Log losses of the rows held out by a Gaussian process whose mean is affine in the formula."""
    total = np.log1p(traits.damage.sum(1))
    inputs = np.column_stack([total, traits.rank, traits.rate, traits.length])
    inputs = (inputs - inputs.min(0)) / np.maximum(np.ptp(inputs, axis=0), 1e-9)
    inputs = np.column_stack([inputs, fitted.predict(traits)])
    seen = ~held_out
    process = fit_loss_gp(inputs[seen], np.log(losses[seen]), kernel="rbf")
    return process.predict(inputs[held_out])[0]


def compute_rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


if __name__ == "__main__":
    main()
