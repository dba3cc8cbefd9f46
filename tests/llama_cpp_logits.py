"""What llama.cpp computes of an exported run, beside the tuned model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qra_eval.export import llama_cpp
from qra_eval.export.tuned import TunedRun


def logits_in_llama_cpp(run: TunedRun, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (positions, vocabulary) of the tuned model, of llama.cpp, and of llama.cpp without the adapter."""
    prompts, model = [ids[0].tolist() for ids in run.input_ids], folder / "model.gguf"
    adapters = (folder / "adapter.gguf", None)
    theirs, alone = (torch.cat(llama_cpp.compute_logits(model, adapter, prompts)) for adapter in adapters)
    return torch.cat([logits[0] for logits in run.tuned_logits]), theirs, alone
