"""Scores of a generated answer: exact match after normalization, F1 over a JSON object, and functions of one's own."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qra_eval.tasks.example import Example
from qra_search import plugins
from qra_search.errors import BadInput, describe, shorten
from qra_search.plugins import IN_MEMORY

log = logging.getLogger(__name__)

Metric = Callable[[str, Example], float]
"""The score of an answer to an example, both without white space around the answer; higher is better."""


def exact_match(answer: str, example: Example) -> float:
    """1.0 if an answer is the wanted one: as JSON if that is an object or list, else without case and white space
    around and between words."""
    wanted = parse_json(example.answer)
    if isinstance(wanted, dict | list):
        return float(_are_equal(parse_json(answer), wanted))
    return float(_normalize(answer) == _normalize(example.answer))


def json_f1(answer: str, example: Example) -> float:
    """F1 over the fields of a JSON object: a field counts if name and value are equal; 0.0 if the answer is none."""
    found, wanted = parse_json(answer), parse_json(example.answer)
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return 0.0
    right = sum(1 for name, value in wanted.items() if name in found and _are_equal(found[name], value))
    total = len(found) + len(wanted)
    return 2 * right / total if total else 1.0


def parse_json(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def load_metrics(names: Sequence[str], functions: Mapping[str, Metric]) -> dict[str, Metric]:
    """The functions of a run's settings by their names; raises BadInput for one that cannot be had.

    Args:
        names: `FILE.py:NAME`, `module:NAME`, or the name of one of the functions with `IN_MEMORY` before it.
        functions: in memory.
    """
    found: dict[str, Metric] = {}
    for name in names:
        in_memory = name.startswith(IN_MEMORY)
        short = name.removeprefix(IN_MEMORY) if in_memory else name.rpartition(":")[2]
        if in_memory and short not in functions:
            raise BadInput(f"this run uses the in-memory metric {short!r}: pass metrics= to open_run()")
        if short in found:
            raise BadInput(f"metric {short!r} is given twice: give it once, or give one of two another name")
        metric = functions[short] if in_memory else plugins.load_object(name)
        if not callable(metric):
            raise BadInput(f"metric {name} is {shorten(metric)}: a function of (answer, example) is needed")
        found[short] = metric
    return found


def check_metric(name: str, metric: Metric, example: Example) -> None:
    """Raises BadInput if a function does not give a number for an example's own answer."""
    try:
        score = _score_answer(metric, example.answer, example)
    except Exception as error:  # another's code may raise anything
        raise BadInput(
            f"metric {name!r} fails on the wanted answer of a test row ({describe(error)}): an answer is text, parse it"
        ) from error
    if not isinstance(score, bool | int | float) or not math.isfinite(score):
        raise BadInput(
            f"metric {name!r} gives {shorten(score)} for the wanted answer of a test row: give a number"
        )


def score_answers(
    name: str, metric: Metric, answers: Sequence[str], examples: Sequence[Example]
) -> list[float]:
    """The score of each answer; one on which the function fails counts as 0, and how many these are is logged."""
    scores, failures = [], []
    for answer, example in zip(answers, examples, strict=True):
        try:
            score = float(_score_answer(metric, answer, example))
            if not math.isfinite(score):
                raise ValueError(f"the score is {score}, a finite number is needed")
            scores.append(score)
        except Exception as error:  # another's code may raise anything
            failures.append(error)
            scores.append(0.0)
    if failures:
        message = "metric %s fails on %d of %d answers, which count as 0 (%s)"
        log.warning(message, name, len(failures), len(answers), describe(failures[0]))
    return scores


def digest_source(metric: Metric) -> str:
    """Short digest of a function's source; empty if that cannot be read."""
    try:
        return hashlib.sha256(inspect.getsource(metric).encode()).hexdigest()[:12]
    except (OSError, TypeError):  # typed at a prompt, or no plain function
        return ""


def _score_answer(metric: Metric, answer: str, example: Example) -> float:
    """A function's score of an answer; a chat's answers have no space before them, those of other rows one."""
    return metric(answer.strip(), replace(example, answer=example.answer.strip()))


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; `true` is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_equal(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _normalize(text: str) -> str:
    return " ".join(text.split()).casefold()
