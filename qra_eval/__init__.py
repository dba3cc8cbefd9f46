"""What a plan is worth: the real quantized-LoRA evaluator and cheap surrogates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_eval.finetune import Tuned, load, tune
    from qra_eval.quantized_lora import QuantizedLoRAEvaluator
    from qra_eval.surrogate import make_landscape

__all__ = ["QuantizedLoRAEvaluator", "Tuned", "load", "make_landscape", "tune"]

# Imported on first use: a landscape needs no torch.
_HOMES = {
    "QuantizedLoRAEvaluator": "quantized_lora",
    "Tuned": "finetune",
    "load": "finetune",
    "make_landscape": "surrogate",
    "tune": "finetune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qra_eval' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"qra_eval.{_HOMES[name]}"), name)
