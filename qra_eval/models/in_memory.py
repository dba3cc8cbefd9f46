"""A `transformers` model in memory as a loaded model: a copy of its modules over the same weights.

Weights are shared unless they are wanted in another dtype or on another device. Nothing here writes to a weight in
place; whoever trains the model while a run holds it changes what the run sees.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from qra_eval.models.loaded import LoadedModel, prepare_model
from qra_search.app.config import make_in_memory_name
from qra_search.errors import BadInput, wrong_type


def load_in_memory(
    model: Any, tokenizer: Any, dtype: torch.dtype, device: str | torch.device, *, stream: bool, weights: bool
) -> LoadedModel:
    """As `load_model`, of a model in memory.

    Raises:
        BadInput: it is no causal language model of transformers, is quantized, is being trained, has adapters on it,
            has weights that are not in memory, or comes without its tokenizer.
    """
    check_model(model)
    if tokenizer is None:
        raise BadInput("a model in memory needs its tokenizer: pass tokenizer= too")
    name, tokenizer = make_in_memory_name(model), copy.deepcopy(tokenizer)  # it may be given a padding token
    twin = _copy(model, dtype, None if weights else "meta")
    fields = {"name": name, "spec": name, "source": model if weights else None}
    return prepare_model(twin, tokenizer, device, stream=stream, weights=weights, **fields)


def check_model(model: Any) -> None:
    """Raises BadInput for a model in memory that cannot be searched; see `load_in_memory`."""
    from transformers import PreTrainedModel

    if hasattr(model, "peft_config") or any(
        "lora_" in name for name, _ in getattr(model, "named_parameters", list)()
    ):
        raise BadInput("the model has adapters: give its base model, or model.merge_and_unload()")
    if not isinstance(model, PreTrainedModel):
        raise wrong_type("model", model, "a name, a folder or a transformers PreTrainedModel is needed")
    if model.get_output_embeddings() is None:
        raise BadInput(
            f"the model is a {type(model).__name__} without a head: load it by AutoModelForCausalLM"
        )
    tensors = list(model.parameters())
    quantized = getattr(model.config, "quantization_config", None) or getattr(model, "hf_quantizer", None)
    plain = all(type(t) is nn.Parameter and t.is_floating_point() for t in tensors)
    if not plain or (quantized and not _is_dequantized(model)):
        raise BadInput("the model is quantized already: the search needs the unquantized weights")
    if any(tensor.grad is not None for tensor in tensors):
        raise BadInput("the model has gradients: finish its training and call model.zero_grad()")
    if any(tensor.is_meta for tensor in tensors):
        raise BadInput("the model has weights that are not in memory: load it without offloading")


def _is_dequantized(model: Any) -> bool:
    """Whether transformers has read a model from GGUF, which it marks as quantized although its weights are plain."""
    return type(getattr(model, "hf_quantizer", None)).__name__ == "GgufHfQuantizer"


def _copy(model: nn.Module, dtype: torch.dtype, device: str | None) -> nn.Module:
    """The tree of modules, without hooks, over the same weights in `dtype`, or over their shapes alone on `meta`."""
    tensors: dict[int, Any] = {
        id(buffer): buffer.detach().to(device, copy=True) for buffer in model.buffers()
    }
    for parameter in model.parameters():
        tensors[id(parameter)] = nn.Parameter(parameter.detach().to(device, dtype), requires_grad=False)
    twin: Any = copy.deepcopy(model, tensors)
    if _is_dequantized(twin):
        twin.hf_quantizer.remove_quantization_config(twin)
    for module in twin.modules():
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict):  # the user's, which are not to be called
                value.clear()
    return twin
