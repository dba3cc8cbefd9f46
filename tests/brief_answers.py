"""Answers of a few tokens: a random model never ends one by itself, and each token is a pass through the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

TOKENS = 3


def write_briefly(patch: pytest.MonkeyPatch) -> None:
    """Tasks' answers have at most `TOKENS` tokens."""
    from qra_eval.tasks import base
    from qra_eval.tasks.generation import generate_answers

    def brief(model: Any, tokenizer: Any, prompts: Sequence[str], most: int, **options: Any) -> list[str]:
        return generate_answers(model, tokenizer, prompts, min(most, TOKENS), **options)

    patch.setattr(base, "generate_answers", brief)
