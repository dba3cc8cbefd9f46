"""A few generated answers to test rows, from before a tuning and after: what a loss does not show."""

from __future__ import annotations

from qra_eval.tuning.workbench import Workbench

SAMPLES = 3
SAMPLE_TOKENS = 64
"""Tokens of a sample answer, at most."""


def sample_answers(workbench: Workbench, count: int = SAMPLES) -> list[dict[str, str]]:
    """Greedy answers to the first test rows that have a prompt, by the plan and adapters in place.

    Returns:
        For each row `prompt`, the `wanted` answer, and what was `answered`; nothing if the model has no tokenizer.
    """
    if workbench.tokenizer is None:
        return []
    rows, length = workbench.rows.task.split("test"), workbench.settings.max_length
    examples = [example for example in rows if example.prompt.strip()][:count]
    answers = workbench.rows.task.answers(
        workbench.model, workbench.tokenizer, examples, SAMPLE_TOKENS, max_length=length + SAMPLE_TOKENS
    )
    return [
        {"prompt": example.prompt, "wanted": example.answer, "answered": answer}
        for example, answer in zip(examples, answers, strict=True)
    ]


def before_and_after(before: list[dict[str, str]], after: list[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """Samples with the answers of two moments, `before` and `after`."""
    return tuple(
        {"prompt": b["prompt"], "wanted": b["wanted"], "before": b["answered"], "after": a["answered"]}
        for b, a in zip(before, after, strict=True)
    )
