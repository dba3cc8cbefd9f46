"""The products compute what torch's kernel computes, and models that need more keep their own attention."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny_config, tiny_config_model
from torch.nn import functional as F

from qra_eval.models.attention import ATTENTION_NAME, MAX_PLAIN_TOKENS, matmul_attention, use_fast_attention


class Module:
    is_causal, training = True, False


@pytest.mark.parametrize("mask", ["causal", "boolean", "additive", "one query"])
@pytest.mark.parametrize("kv", [1, 2, 6])
def test_products_equal_torchs_kernel_with_gradients(mask, kv):
    torch.manual_seed(0)
    n, heads, d, s = 2, 6, 8, 11
    t = 1 if mask == "one query" else s
    q = torch.randn(n, heads, t, d, requires_grad=True)
    k, v = torch.randn(n, kv, s, d, requires_grad=True), torch.randn(n, kv, s, d, requires_grad=True)
    allowed = torch.ones(n, 1, t, s, dtype=torch.bool).tril(s - t)
    allowed[1, :, :, :2] = False
    allowed[..., 0] = True
    given = {"causal": None, "one query": None, "boolean": allowed, "additive": torch.zeros(n, 1, t, s)}[mask]
    if mask == "additive":
        given = given.masked_fill(~allowed, float("-inf"))
    found, _ = matmul_attention(Module(), q, k, v, given, 0.3)
    repeat = lambda x: x.repeat_interleave(heads // kv, 1)  # noqa: E731
    reference = given if given is not None else torch.ones(t, s, dtype=torch.bool).tril(s - t)
    expected = F.scaled_dot_product_attention(
        q, repeat(k), repeat(v), attn_mask=reference, scale=0.3
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
    )


def test_long_sequences_go_to_torchs_kernel():
    q = torch.randn(1, 2, MAX_PLAIN_TOKENS + 1, 4)
    k = torch.randn(1, 1, MAX_PLAIN_TOKENS + 1, 4)
    found, _ = matmul_attention(Module(), q, k, k, None)
    expected = F.scaled_dot_product_attention(q, k.expand_as(q), k.expand_as(q), is_causal=True).transpose(
        1, 2
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("family", "more", "switched"),
    [
        ("llama", {}, True),
        ("mistral", {"sliding_window": 4}, True),
        ("gemma2", {"attn_logit_softcapping": 0.5}, False),
    ],
)
def test_a_model_is_switched_only_where_it_computes_the_same(family, more, switched):
    from transformers import AutoModelForCausalLM

    model = tiny_config_model(family, **more)
    ids = torch.randint(0, 320, (2, 16))
    before = model(input_ids=ids).logits
    assert use_fast_attention(model) is switched
    assert (model.config._attn_implementation == ATTENTION_NAME) is switched
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-3, atol=1e-4)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(tiny_config(family, **more))
    assert use_fast_attention(shape) is switched
    assert shape.config._attn_implementation == model.config._attn_implementation
