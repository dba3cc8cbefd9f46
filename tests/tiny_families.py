"""Tiny random models of many architectures, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qra_eval.models.linears import normalize_linears
from qra_eval.models.tiny import byte_tokenizer

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 128, 2, 4, 2, 320

_COMMON = {"num_attention_heads": HEADS, "intermediate_size": INTERMEDIATE}
_GROUPED = {**_COMMON, "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS}
_EXPERTS = {
    **_COMMON,
    "num_key_value_heads": KV_HEADS,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INTERMEDIATE,
}
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
    "mixtral": ("mixtral", {**_GROUPED, "num_experts_per_tok": 2, "num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": INTERMEDIATE}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "head_dim": HIDDEN // HEADS}),
}
FAMILIES = tuple(_FAMILIES)


def tiny_config(
    family: str, *, hidden: int = HIDDEN, layers: int = LAYERS, vocabulary: int = VOCABULARY, **more: Any
) -> Any:
    """A transformers config of a family, cut down; `more` overrides its fields."""
    kind, own = _FAMILIES[family]
    size = {} if family == "gpt2" else {"hidden_size": hidden, "num_hidden_layers": layers}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    fields = {**size, **own, **ends, "vocab_size": vocabulary, "max_position_embeddings": 512, **more}
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
    config = tiny_config(family, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        # Initial weights are so small that every next token is as likely as another; wider ones make outputs differ.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(4)
    model.requires_grad_(False).eval()
    return normalize_linears(model) if normalised else model


def save_tiny(family: str, folder: Path, **options: Any) -> Path:
    """Write a `tiny_config_model` as transformers has it, and a tokenizer of bytes, into a folder; gives the folder."""
    tiny_config_model(family, normalised=False, **options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
