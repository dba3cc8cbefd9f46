"""Live models: a `transformers` model in memory, known by a digest of its weights, and left as it is.

A copy of the tree of modules is made, which shares the weights with the live model unless they are wanted in another
dtype or on another device. Nothing here writes to a weight in place; whoever trains the live model while a run holds it
changes what the run sees, which the digest finds when the model is loaded next.
"""

from __future__ import annotations

import copy
import hashlib
import weakref
from typing import Any

import torch
from torch import nn

from qra_eval.models.loaded import LoadedModel, fingerprint, finish, finish_shape
from qra_eval.models.names import LIVE, LIVE_MODELS, ModelNotFound
from qra_search.errors import BadInput, needed

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
"""What others hung on the live model's modules; the copy has none of it."""


def register_live(model: Any, tokenizer: Any) -> str:
    """The name of a live model, `live:<digest>`, by which `load_model` finds it in this process as long as it lives.

    Raises:
        BadInput: it is no causal language model of transformers, is quantized, is being trained, has adapters on it, or
            has weights that are not in memory.
    """
    check_live(model)
    name = _name(model, tokenizer)
    LIVE_MODELS[name] = weakref.ref(model), tokenizer
    return name


def _name(model: Any, tokenizer: Any) -> str:
    """Of the weights, and of the format of chats, in which one model may be given twice."""
    chat = hashlib.sha256(repr(getattr(tokenizer, "chat_template", None)).encode())
    return f"{LIVE}{fingerprint(model)}-{chat.hexdigest()[:4]}"


def load_live(
    name: str, dtype: torch.dtype, device: str | torch.device, *, stream: bool = False, weights: bool = True
) -> LoadedModel:
    """What `load_model` gives, of a registered live model; arguments as there.

    Raises:
        ModelNotFound: it was let go.
        BadInput: it was changed since it was registered, or cannot be used any more.
    """
    reference, tokenizer = LIVE_MODELS[name]
    model = reference()
    if model is None:
        raise ModelNotFound(f"the live model {name} is gone: keep it as long as the run, or give model= again")
    check_live(model)
    if _name(model, tokenizer) != name:
        raise BadInput(
            f"the live model {name} has other weights or another chat template now: load what the run began with"
        )
    tokenizer = copy.deepcopy(tokenizer)  # it may be given a padding token
    if not weights:
        return finish_shape(_copied(model, dtype, "meta"), tokenizer, name, name)
    return finish(_copied(model, dtype), tokenizer, name, name, device, stream)


def check_live(model: Any) -> None:
    """Raises BadInput for a model that cannot be searched; see `register_live`."""
    from transformers import PreTrainedModel

    if hasattr(model, "peft_config") or any("lora_" in name for name, _ in getattr(model, "named_parameters", list)()):
        raise BadInput("the live model has adapters on it: give the model below them, or model.merge_and_unload()")
    if not isinstance(model, PreTrainedModel):
        raise needed("model", model, "a name, a folder or a live transformers PreTrainedModel is needed")
    if model.get_output_embeddings() is None:
        raise BadInput(f"the live model is a {type(model).__name__} without a head: load it by AutoModelForCausalLM")
    tensors = list(model.parameters())
    if (
        getattr(model.config, "quantization_config", None)
        or getattr(model, "hf_quantizer", None)
        or any(type(t) is not nn.Parameter or not t.is_floating_point() for t in tensors)
    ):
        raise BadInput("the live model is quantized already: the search needs the unquantized weights")
    if any(tensor.grad is not None for tensor in tensors):
        raise BadInput("the live model is being trained, it has gradients: end that, and model.zero_grad()")
    if any(tensor.is_meta for tensor in tensors):
        raise BadInput("the live model has weights that are not in memory: load it without offloading")


def _copied(model: nn.Module, dtype: torch.dtype, device: str | None = None) -> nn.Module:
    """The tree of modules, without hooks, over the same weights in `dtype`, or over their shapes alone on `meta`."""
    made: dict[int, Any] = {}
    for parameter in model.parameters():
        made[id(parameter)] = nn.Parameter(parameter.detach().to(device, dtype), requires_grad=False)
    for buffer in model.buffers():
        made[id(buffer)] = buffer.detach().to(device, copy=True)
    twin = copy.deepcopy(model, made)
    for module in twin.modules():
        for hooks in HOOKS:
            getattr(module, hooks).clear()
    return twin
