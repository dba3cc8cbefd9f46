"""What a GGUF file of a model family needs beside its weights: the architecture's keys, and how tensors are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qra_eval.models.loaded import get_head_dim

ROPE_TYPES = ("default", "linear", "llama3")
"""Kinds of rotary embedding that are written; llama3's frequencies go into a tensor."""


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        architecture: llama.cpp's name.
        permuted: whether llama.cpp reorders the rows of q and k for its rotary embedding.
        shifted_norms: whether the model multiplies by 1 + the weight of a norm, and llama.cpp by what the file has.
        window: whether some layers see a sliding window; if not, llama.cpp knows none.
        scalars: layers of the size whose attention llama.cpp scales by hidden / heads, and all others by the head's
            width; None: the model does not say otherwise.
    """

    architecture: str
    permuted: bool = False
    shifted_norms: bool = False
    window: bool = False
    scalars: int | None = None


FAMILIES = {
    "llama": Family("llama", permuted=True),
    "mistral": Family("llama", permuted=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "qwen3_moe": Family("qwen3moe"),
    "gemma": Family("gemma", shifted_norms=True),
    "gemma2": Family("gemma2", shifted_norms=True, window=True, scalars=46),
    "gemma3_text": Family("gemma3", shifted_norms=True, window=True, scalars=62),
    "phi": Family("phi2"),
    "phi3": Family("phi3"),
}
"""Families by transformers' model type."""


def find_family(config: Any) -> Family:
    return FAMILIES[config.model_type]


def list_family_issues(config: Any) -> list[str]:
    """Why llama.cpp would not compute a model of this transformers config, or why it is not written here."""
    mend = "export as merged, and convert that with llama.cpp's convert_hf_to_gguf.py"
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        return [
            f"{config.model_type} is not one of the model types that can be written as GGUF ({known}): {mend}"
        ]
    family = find_family(config)
    kind = get_rope_parameters(config).get("rope_type", "default")
    layers = getattr(config, "layer_types", None)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    heads = config.num_attention_heads
    is_large = config.num_hidden_layers == family.scalars
    scale = config.hidden_size // heads if is_large else get_head_dim(config)
    usual = type(config)(num_hidden_layers=config.num_hidden_layers)
    issues = []
    if kind not in ROPE_TYPES:
        issues.append(f"the rotary embedding is scaled ({kind}), which this export does not support: {mend}")
    if family.window and layers != usual.layer_types:
        usually = "in llama.cpp layers attend beyond the window as is usual in this family"
        issues.append(f"{usually}, but this model has {layers}")
    if family.scalars is not None and scalar != scale:
        issues.append(
            f"llama.cpp scales attention for a query_pre_attn_scalar of {scale}, but this model has {scalar}"
        )
    if getattr(config, "norm_topk_prob", True) is False:
        issues.append(
            "llama.cpp normalizes the weights of the chosen experts, but this model does not (norm_topk_prob)"
        )
    return issues


def get_rope_parameters(config: Any) -> dict[str, Any]:
    """Rotary parameters, those of full-attention layers if others have their own."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = found.get("full_attention", found)
    return {"rope_theta": getattr(config, "rope_theta", None) or 10000.0, **found}


def add_hyperparameters(writer: Any, config: Any) -> None:
    head = get_head_dim(config)
    turned = get_rope_parameters(config)
    fields: tuple[tuple[str, Callable[..., None]], ...] = (
        ("vocab_size", writer.add_vocab_size),
        ("max_position_embeddings", writer.add_context_length),
        ("hidden_size", writer.add_embedding_length),
        ("num_hidden_layers", writer.add_block_count),
        ("intermediate_size", writer.add_feed_forward_length),
        ("num_attention_heads", writer.add_head_count),
        ("num_key_value_heads", writer.add_head_count_kv),
        ("rms_norm_eps", writer.add_layer_norm_rms_eps),
        ("layer_norm_eps", writer.add_layer_norm_eps),
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("num_local_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
    )
    for name, add in fields:
        value = getattr(config, name, None)
        if value is not None:
            add(value)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if find_family(config).window:
        writer.add_sliding_window(config.sliding_window)
        near = getattr(config, "rope_parameters", None) or {}
        writer.add_rope_freq_base_swa(float(near.get("sliding_attention", turned)["rope_theta"]))
    writer.add_rope_freq_base(float(turned["rope_theta"]))
    writer.add_rope_dimension_count(int(head * turned.get("partial_rotary_factor", 1.0)))
    if turned.get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(turned["factor"]))


def compute_rope_factors(config: Any) -> Tensor | None:
    """What llama.cpp divides the rotary frequencies by, float32 (head / 2,); None if no tensor says so.

    Llama 3.1 slows down the frequencies whose waves are longer than the context that it was trained on first.
    """
    found = get_rope_parameters(config)
    if found.get("rope_type", "default") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain = 1.0 / found["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled
