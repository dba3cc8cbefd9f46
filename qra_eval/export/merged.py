"""Format `merged`: the adapter added to the dequantized weights, as a model that plain transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from qra_eval.export.base import Exported, Exporter
from qra_eval.export.tuned import TunedRun


class MergedExporter(Exporter):
    """An unquantized model, with the rounding of the plan in its weights and the adapter merged.

    Args:
        dtype: of the saved weights. The tuned model adds the adapter's output after the base's; a weight that holds
            both is rounded once more. float32 adds no rounding, and a model tuned in bfloat16 then differs by its own.
    """

    name = "merged"

    def __init__(self, dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"):
        self.dtype: torch.dtype = getattr(torch, dtype)

    def write(self, run: TunedRun, out: Path) -> Exported:
        model = run.build_skeleton().to(self.dtype)
        state = run.build_plain_state(lambda name: run.merge_weight(name).to(self.dtype))
        floats = {key: value.to(self.dtype) for key, value in state.items() if value.is_floating_point()}
        model.load_state_dict({**state, **floats}, assign=True)
        model.tie_weights()
        model.config.dtype, model.generation_config = self.dtype, run.base.generation_config
        model.save_pretrained(out)
        run.tokenizer.save_pretrained(out)
        size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
        name = str(self.dtype).removeprefix("torch.")
        notes = (
            f'load it with AutoModelForCausalLM.from_pretrained("{out}", dtype="{name}")',
            f"{size / 2**20:.1f} MiB: an unquantized model, no smaller than the one that was tuned",
        )
        return Exported(out, notes, **run.compare_logits(run.compute_logits(load_plain(out, self.dtype))))


def load_plain(folder: Path, dtype: torch.dtype, **options: object) -> torch.nn.Module:
    """A model folder as plain transformers loads it, without a network."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
