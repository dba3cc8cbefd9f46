"""Format `bitsandbytes`: a checkpoint that plain transformers loads in 4 bits, with the adapter beside it for PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.merged import load_plain
from qra_eval.export.packed import WEIGHTS_FILE, untied
from qra_eval.export.peft import write_adapter
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS


class BitsAndBytesExporter(Exporter):
    """The 4-bit linears as bitsandbytes stores them, copied; linears of 16 bits are named as not to be converted.

    transformers has one kind of 4 bits a model, and no 8 bits beside it.
    """

    name = "bitsandbytes"
    summary = "4-bit checkpoint for plain transformers, the adapter beside it for PEFT"

    def check(self, run: TunedRun) -> list[str]:
        others = [m for m in run.linears if m.bits != UNQUANTIZED_BITS and _state(run, m) is None]
        reasons = []
        if others:
            reasons.append(
                f"{len(others)} linears are not stored as bitsandbytes' 4 bits, such as {others[0].name}: search with "
                "--engine transformers, or export as merged"
            )
        if len({state.quant_type for state in (_state(run, m) for m in run.linears) if state is not None}) > 1:
            reasons.append("transformers takes nf4 or fp4, not both in one model: search with one of them")
        if not run.is_plain():
            reasons.append(f"{run.config.model_type} computes with transposed or stacked weights: export as merged")
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        state: dict[str, Tensor] = {}
        kept: list[str] = []
        stored = 0
        for linear in run.linears:
            quantized, module = _state(run, linear), run.module(linear.name)
            weight = module.get_parameter("weight").data
            state[f"{linear.name}.weight"] = weight
            if quantized is None:
                kept.append(linear.name)
                continue
            parts = quantized.as_dict(packed=True)
            state |= {f"{linear.name}.weight.{key}": value for key, value in parts.items()}
            stored += weight.nbytes + sum(value.nbytes for key, value in parts.items() if "quant_state" not in key)
        written = {linear.name for linear in run.linears}
        for key, value in run.base.state_dict().items():
            if not any(key.startswith(f"{name}.") for name in written) or key.endswith(".bias"):
                state[key] = value
        save_file(untied(state), out / WEIGHTS_FILE, metadata={"format": "pt"})
        config = copy.deepcopy(run.config)
        config.dtype, config.quantization_config = run.dtype, _config(run, kept)
        config.save_pretrained(out)
        run.base.generation_config.save_pretrained(out)
        run.tokenizer.save_pretrained(out)
        write_adapter(run, out / ADAPTER_FOLDER, base=out)
        notes = [
            f"{len(run.linears) - len(kept)} of {len(run.linears)} searched weights are copies of the plan's own: "
            f"{stored} bytes with their scales",
            f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{out}"), "{out / ADAPTER_FOLDER}")',
        ]
        return compared(out, notes, run, load_4bit(run, out))


def load_4bit(run: TunedRun, out: Path) -> Any:
    """The written folder, as plain transformers and PEFT load it.

    On a CPU with AVX512_BF16, bitsandbytes 0.50 repacks weights at the first evaluation, and rounds their scales to
    bfloat16; that is off here, as it is in tuning.
    """
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel

    model = load_plain(out, run.dtype)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(model, str(out / ADAPTER_FOLDER), autocast_adapter_dtype=False)  # type: ignore[arg-type]


def _state(run: TunedRun, linear: Chosen) -> Any:
    """bitsandbytes' description of a 4-bit weight; None if the linear is stored in another way."""
    if linear.bits != 4:
        return None
    return getattr(getattr(run.module(linear.name), "weight", None), "quant_state", None)


def _config(run: TunedRun, kept: list[str]) -> dict[str, Any]:
    states = [state for state in (_state(run, linear) for linear in run.linears) if state is not None]
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
