"""What a plan is worth: the real quantized-LoRA evaluator and cheap surrogates. `load` gives a tuned run's model."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
    from qra_eval.tuning.loading import load

__all__ = ["QuantizedLoRAEvaluator", "load"]
for _name in ("bitsandbytes", "kernels"):  # PEFT imports them; kernels that they do without are no news
    logging.getLogger(_name).setLevel(logging.ERROR)
_MODULES = {"QuantizedLoRAEvaluator": "evaluators.quantized_lora", "load": "tuning.loading"}


def __getattr__(name: str) -> Any:
    """Imported when it is first asked for: both bring torch, which the landscapes do without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
