"""Format `bitsandbytes`: a checkpoint that plain transformers loads in 4 bits, with the adapter beside it for PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qra_eval.export.copied import CopyingExporter
from qra_eval.export.merged import load_plain
from qra_eval.export.tuned import TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS


class BitsAndBytesExporter(CopyingExporter):
    """The 4-bit linears as bitsandbytes stores them; linears of 16 bits are named as not to be converted.

    transformers has one kind of 4 bits a model, and no 8 bits beside it.
    """

    name = "bitsandbytes"
    summary = "4-bit checkpoint for plain transformers, the adapter beside it for PEFT"
    engine = "transformers"

    def check(self, run: TunedRun) -> list[str]:
        reasons = super().check(run)
        if len({state.quant_type for state in _states(run)}) > 1:
            reasons.append("transformers takes nf4 or fp4, not both in one model: search with one of them")
        return reasons

    def tensors(self, module: nn.Module) -> dict[str, Tensor] | None:
        state = _state(module)
        if state is None:
            return None
        parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {"weight": module.get_parameter("weight").data, **parts}

    def quantization(self, run: TunedRun) -> dict[str, Any]:
        states = _states(run)
        kept = [linear.name for linear in run.linears if linear.bits == UNQUANTIZED_BITS]
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": states[0].quant_type if states else "nf4",
            "bnb_4bit_use_double_quant": bool(states and states[0].nested),
            "bnb_4bit_compute_dtype": str(run.dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["lm_head", *kept],
        }

    def reload(self, run: TunedRun, out: Path) -> tuple[Any, str]:
        """As plain transformers and PEFT load it.

        On a CPU with AVX512_BF16, bitsandbytes 0.50 repacks weights at the first evaluation, and rounds their scales to
        bfloat16; that is off here, as it is in tuning.
        """
        from bitsandbytes.nn import Linear4bit
        from peft import PeftModel

        model: Any = load_plain(out, run.dtype)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
        folder = str(out / ADAPTER_FOLDER)
        note = f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{out}"), "{folder}")'
        return PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False), note


def _state(module: nn.Module) -> Any:
    """bitsandbytes' description of a 4-bit weight; None if the module has none."""
    return getattr(getattr(module, "weight", None), "quant_state", None)


def _states(run: TunedRun) -> list[Any]:
    found = (_state(run.module(linear.name)) for linear in run.linears if linear.bits != UNQUANTIZED_BITS)
    return [state for state in found if state is not None]
