"""What a plan is worth: the real quantized-LoRA evaluator and cheap surrogates. `load` gives a tuned run's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load"]


def load(run: str | Path, *, device: str = "cpu") -> Any:
    """The tuned model of a run's folder, exactly as it was after tuning: (peft model, tokenizer).

    Raises:
        ValueError: no tuned plan there, or the model's weights are not those that it was made for.
    """
    from qra_eval.finetune import load as load_tuned

    return load_tuned(run, device=device)
