"""Scores of one generated answer beside the wanted one: exact match after normalization, and F1 over a JSON object."""

from __future__ import annotations

import json
from typing import Any


def exact_match(answer: str, wanted: str) -> float:
    """1.0 if two answers are equal: as JSON if the wanted one is an object or list, else without case and white space
    around and between words."""
    target = parse_json(wanted)
    if isinstance(target, dict | list):
        return float(parse_json(answer) == target)
    return float(_normalize(answer) == _normalize(wanted))


def json_f1(answer: str, wanted: str) -> float:
    """F1 over the fields of a JSON object: a field counts if name and value are equal; 0.0 if the answer is none."""
    found, target = parse_json(answer), parse_json(wanted)
    if not isinstance(found, dict) or not isinstance(target, dict):
        return 0.0
    right = sum(1 for name, value in target.items() if name in found and found[name] == value)
    total = len(found) + len(target)
    return 2 * right / total if total else 1.0


def parse_json(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _normalize(text: str) -> str:
    return " ".join(text.split()).casefold()
