"""Reads a mixture of experts expert by expert, straight from the files that hold them so.

Transformers 5 stacks the experts of a layer when it loads them, which copies them all; taken apart again, as a search
needs them, that is the whole model twice in memory. Here each expert's weights stay mapped from the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from qra_eval.models.experts import Experts
from qra_eval.models.linears import unstack

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def mixture_from_files(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module | None:
    """The model with its experts apart; None if it has none, or the files have other names for them.

    Args:
        folder: of a checkpoint in safetensors.
        dtype: of the weights; those that are stored in another are copied.

    Raises:
        OSError: there are no such files.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    with torch.device("meta"):
        shape = unstack(AutoModelForCausalLM.from_config(config, dtype=dtype))
    if not any(isinstance(module, Experts) for module in shape.modules()):
        return None
    where = _files(folder)
    shared = {"lm_head.weight"} if config.get_text_config().tie_word_embeddings else set()
    names = dict(shape.named_parameters())
    if set(names) - shared - set(where):
        return None
    with init_empty_weights(include_buffers=False):  # buffers, such as rotary frequencies, are computed
        model: Any = unstack(AutoModelForCausalLM.from_config(config, dtype=dtype))
    opened = {file: safe_open(folder / file, framework="pt") for file in set(where.values())}
    for name in [name for name in names if name in where]:
        parent, _, child = name.rpartition(".")
        tensor = opened[where[name]].get_tensor(name).to(dtype)
        setattr(model.get_submodule(parent), child, nn.Parameter(tensor, requires_grad=False))
    for name in [name for name, _ in model.named_buffers() if name in where]:
        model.get_buffer(name).copy_(opened[where[name]].get_tensor(name))
    model.tie_weights()
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _files(folder: Path) -> dict[str, str]:
    """The file that holds each tensor of a checkpoint."""
    if (folder / INDEX).is_file():
        return dict(json.loads((folder / INDEX).read_text())["weight_map"])
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)
