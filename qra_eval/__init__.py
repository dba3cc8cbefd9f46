"""What a plan is worth: the real quantized-LoRA evaluator and cheap surrogates. `load` gives a tuned run's model.

Once this is imported, transformers loads what `qra export --format peft` wrote: see `qra_eval.pretrained`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
    from qra_eval.tuning.loading import load

__all__ = ["QuantizedLoRAEvaluator", "load"]
_HOMES = {"QuantizedLoRAEvaluator": "evaluators.quantized_lora", "load": "tuning.loading"}


def __getattr__(name: str) -> Any:
    """Imported when it is first asked for: both bring torch, which the landscapes do without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Registering:
    """Registers our quantizer when transformers' list of them is imported: neither takes its seconds before."""

    LIST = "transformers.quantizers.auto"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.LIST:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                importlib.import_module("qra_eval.pretrained")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _Registering.LIST in sys.modules:
    importlib.import_module("qra_eval.pretrained")
else:
    sys.meta_path.insert(0, _Registering())
