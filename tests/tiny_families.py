"""Tiny random models of many architectures, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qra_eval.models.linears import normalise

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 128, 2, 4, 2, 320

_COMMON = {"num_attention_heads": HEADS, "intermediate_size": INTERMEDIATE}
_GROUPED = {**_COMMON, "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS}
_MIXTURE = {**_GROUPED, "num_experts_per_tok": 2}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("mistral", _GROUPED),
    "qwen2": ("qwen2", {**_COMMON, "num_key_value_heads": KV_HEADS}),
    "qwen3": ("qwen3", _GROUPED),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "query_pre_attn_scalar": HIDDEN // HEADS, "sliding_window": 32}),
    "gemma3": ("gemma3_text", {**_GROUPED, "query_pre_attn_scalar": HIDDEN // HEADS, "sliding_window": 32}),
    "phi": ("phi", _COMMON),
    "phi3": ("phi3", {**_COMMON, "num_key_value_heads": KV_HEADS}),
    "gpt2": ("gpt2", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INTERMEDIATE}),
    "opt": ("opt", {"num_attention_heads": HEADS, "ffn_dim": INTERMEDIATE, "word_embed_proj_dim": HIDDEN}),
    "gpt_neox": ("gpt_neox", _COMMON),
    "mixtral": ("mixtral", {**_MIXTURE, "num_local_experts": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **_COMMON,
            "num_key_value_heads": KV_HEADS,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": INTERMEDIATE,
            "shared_expert_intermediate_size": INTERMEDIATE,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**_MIXTURE, "num_experts": 4, "moe_intermediate_size": INTERMEDIATE}),
}
FAMILIES = tuple(_FAMILIES)


def tiny_config(
    family: str, *, hidden: int = HIDDEN, layers: int = LAYERS, vocabulary: int = VOCABULARY, **more: Any
) -> Any:
    """A transformers config of a family, cut down; `more` overrides its fields.

    Raises:
        ValueError: the family is not one of `FAMILIES`.
    """
    from transformers import AutoConfig

    if family not in _FAMILIES:
        raise ValueError(f"unknown family {family!r}: known are {', '.join(FAMILIES)}")
    kind, own = _FAMILIES[family]
    size = {} if family == "gpt2" else {"hidden_size": hidden, "num_hidden_layers": layers}
    fields = {
        **size,
        **own,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **more,
    }
    if family == "gpt2":
        fields["n_positions"] = fields.pop("max_position_embeddings")
    return AutoConfig.for_model(kind, **fields)


def tiny_config_model(
    family: str, seed: int = 0, *, dtype: torch.dtype = torch.float32, normalised: bool = True, **more: Any
) -> nn.Module:
    """A random causal model of a family, frozen and in evaluation mode; the global generator is left as it was.

    Args:
        normalised: replace Conv1D and stacked experts by linears, as `load_model` does.
        more: overrides fields of the config.
    """
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        # Initial weights are so small that every next token is as likely as another; wider ones make outputs differ.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(4)
    model.requires_grad_(False).eval()
    return normalise(model) if normalised else model
