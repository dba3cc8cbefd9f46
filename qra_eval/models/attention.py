"""Attention for short sequences on a CPU: plain matrix products, two to four times as fast as the flash kernel there.

A training step of SmolLM2 in bfloat16 on one thread takes 1.31 times as long with torch's kernel (8 rows of 164 tokens
of GSM8K; 1.32 with 8 rows of 21 of Banking77), which needs the keys repeated for grouped queries. With transformers'
eager attention it takes 1.33 times as long on the long rows, and keeps half as much memory again. Longer sequences go
to torch's kernel, which keeps no (T, T) matrix for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qra_eval.models.loaded import get_position_table_size

ATTENTION_NAME = "qra_matmul"
MAX_PLAIN_TOKENS = 512
"""Tokens up to which plain products are used."""
TOLERANCE = 0.05
"""Largest difference of logits from the model's eager attention, in root mean square as a share of their deviation,
at which the two count as the same. Half precision alone makes 0.01 of SmolLM2; another mask makes more than 0.3."""


def use_fast_attention(model: Any) -> bool:
    """Switch a model on a CPU to `matmul_attention` if that computes the same; True if it was switched.

    Models whose attention is more than scaled dot products (soft-capping, sinks, biases) show a difference on a probe
    and keep their own. A model of shapes alone, which cannot be run, is switched by what its config says: estimates of
    memory follow from it, as `matmul_attention` keeps matrices (T, T) where torch's kernel keeps none.
    """
    text = model.config.get_text_config()
    before = model.config._attn_implementation
    place = model.device.type
    differs = getattr(text, "attn_logit_softcapping", None) or text.model_type == "gpt_oss"  # sinks
    if place not in ("cpu", "meta") or (place == "meta" and differs):
        return False
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    same = True
    tokens = min(40, get_position_table_size(model) or 40)
    try:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, matmul_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, sdpa_mask)
        if place == "meta":
            model.set_attn_implementation(ATTENTION_NAME)
        else:
            probe = torch.randint(0, text.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(0))
            logits = []
            for implementation in ("eager", ATTENTION_NAME):
                model.set_attn_implementation(implementation)
                with torch.no_grad():
                    logits.append(model(input_ids=probe, use_cache=False).logits.float())
            expected, found = logits
            error = (found - expected).pow(2).mean().sqrt()
            same = bool(torch.isfinite(found).all()) and float(error) <= TOLERANCE * float(expected.std())
    except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError):
        same = False  # the architecture does not let its attention be replaced
    if not same:
        model.set_attn_implementation(before)
    return same


def matmul_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Scaled dot-product attention in the form that transformers calls: (N, T, H, D), and None for the weights.

    Args:
        query: (N, H, T, D).
        key, value: (N, K, S, D), where K divides H.
        attention_mask: None (causal), boolean (True: attend) or additive; broadcasts to (N, 1, T, S).
    """
    if options.get("softcap") or options.get("s_aux") is not None:
        raise ValueError(
            "this model needs soft-capping or attention sinks, which matmul_attention does not support: load it "
            'with attn_implementation="eager"'
        )
    n, heads, t, d = query.shape
    kv, s = key.shape[1], key.shape[2]
    if max(t, s) > MAX_PLAIN_TOKENS or value.shape[-1] != d:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout if module.training else 0.0, scaling
        )
    fold = heads // kv
    q = query.reshape(n * kv, fold * t, d)
    k, v = key.reshape(n * kv, s, d), value.reshape(n * kv, s, d)
    scale = d**-0.5 if scaling is None else scaling
    bias = _make_bias(attention_mask, t, s, query, getattr(module, "is_causal", True))
    if bias is None:
        scores = torch.bmm(q, k.transpose(1, 2)) * scale
    else:
        if bias.dim() == 2:
            bias = bias.repeat(fold, 1).expand(n * kv, fold * t, s)
        else:
            bias = bias.expand(n, 1, t, s).repeat(1, kv, fold, 1).reshape(n * kv, fold * t, s)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    weights = F.dropout(scores.softmax(-1), dropout, module.training)
    return torch.bmm(weights, v).view(n, heads, t, d).transpose(1, 2), None


def _make_bias(mask: Tensor | None, t: int, s: int, like: Tensor, causal: bool) -> Tensor | None:
    if mask is None:
        if t == 1 or not causal:
            return None
        return like.new_full((t, s), float("-inf")).triu(s - t + 1)
    mask = mask[..., :s]
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, torch.finfo(like.dtype).min)
    return mask.to(like.dtype)
