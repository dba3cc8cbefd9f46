"""What tests of a real model can do without: whole answers, bases that lose little, reports nobody asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

TOKENS, CALIBRATION_ROWS = 3, 16
"""A random model never ends an answer by itself, and each token is a pass through the model."""


def make_brief(patch: pytest.MonkeyPatch) -> None:
    """Answers have at most `TOKENS` tokens, linears are calibrated by `CALIBRATION_ROWS` rows at most, and no
    report is written but by `qra report`."""
    from qra_eval.quantized import model
    from qra_eval.tasks import base
    from qra_eval.tasks.scoring import generate_answers
    from qra_search.app import run, search
    from qra_search.app.cli import look

    def answer(model: Any, tokenizer: Any, prompts: Sequence[str], most: int, **options: Any) -> list[str]:
        return generate_answers(model, tokenizer, prompts, min(most, TOKENS), **options)

    assert callable(look.report)  # imported before the patch: a report that is asked for is written
    patch.setattr(base, "generate_answers", answer)
    patch.setattr(model, "MAX_ROWS", CALIBRATION_ROWS)
    for module in (search, run):
        patch.setattr(module, "write_page", lambda snapshot, path=None: None)
