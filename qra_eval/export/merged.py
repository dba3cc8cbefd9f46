"""Format `merged`: the adapter added to the dequantized weights, as a model that plain transformers loads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.tuned import Chosen, TunedRun

DTYPES = ("bfloat16", "float16", "float32")


class MergedExporter(Exporter):
    """An unquantized model, with the rounding of the plan in its weights and the adapter merged.

    Args:
        dtype: of the saved weights. The tuned model adds the adapter's output after the base's; a weight that holds
            both is rounded once more. float32 adds no rounding, and a model tuned in bfloat16 then differs by its own.
    """

    name = "merged"
    summary = "adapter merged into dequantized weights; plain transformers loads it"

    def __init__(self, dtype: str = "bfloat16"):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.dtype: torch.dtype = getattr(torch, dtype)

    def check(self, run: TunedRun) -> list[str]:
        return []

    def write(self, run: TunedRun, out: Path) -> Exported:
        write_plain(run, out, self.dtype)
        size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
        name = str(self.dtype).removeprefix("torch.")
        notes = [
            f'load it with AutoModelForCausalLM.from_pretrained("{out}", dtype="{name}")',
            f"{size / 2**20:.1f} MiB: an unquantized model, no smaller than the one that was tuned",
        ]
        return compared(out, notes, run, load_plain(out, self.dtype))


def write_plain(run: TunedRun, out: Path, dtype: torch.dtype) -> None:
    """Write config, weights and tokenizer as transformers has them, the adapter in the weights."""

    def weight(linear: Chosen) -> Tensor:
        return run.merged(linear).to(dtype)

    state = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in run.plain_state(weight).items()
    }
    model = run.skeleton().to(dtype)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    model.generation_config = run.base.generation_config
    model.save_pretrained(out)
    run.tokenizer.save_pretrained(out)


def load_plain(folder: Path, dtype: torch.dtype, **options: object) -> torch.nn.Module:
    """A model folder as plain transformers loads it, without a network."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
