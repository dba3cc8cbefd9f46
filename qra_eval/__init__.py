"""What a plan is worth: the real quantized-LoRA evaluator and cheap surrogates. `load` gives a tuned run's model.

Once this is imported, transformers loads what `qra export --format peft` wrote: see `qra_eval.pretrained`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

__all__ = ["QuantizedLoRAEvaluator", "load"]


def load(
    run: str | Path, *, adapter: str | Path | None = None, device: str = "auto", trust_remote_code: bool = False
) -> Any:
    """The tuned model of a run's folder, exactly as it was after tuning: (peft model, tokenizer).

    Args:
        adapter: folder of another adapter for the same base, such as one that `Trainer` went on with.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.
        trust_remote_code: run code that comes with the model.

    Raises:
        ValueError: no tuned plan there, or the model's weights are not those that it was made for.
    """
    from qra_eval.tuning.loading import load as load_tuned

    return load_tuned(run, adapter=adapter, device=device, trust_remote_code=trust_remote_code)


def __getattr__(name: str) -> Any:
    """The evaluator, imported when it is first asked for: it brings torch, which the landscapes do without."""
    if name == "QuantizedLoRAEvaluator":
        from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

        return QuantizedLoRAEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
