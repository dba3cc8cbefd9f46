"""Small models, and rows of random tokens for them."""

from __future__ import annotations

import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2 import Gemma2ForCausalLM
from transformers.models.gpt2 import GPT2LMHeadModel

from qra_eval.quantized import adapters
from qra_eval.tasks.encoding import IGNORED, Encoded

CPU = torch.device("cpu")


def tiny(family: str = "llama"):
    torch.manual_seed(0)
    common = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=61
    )
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2)).eval()
    if family == "gemma2":  # scales its logits after the head (final_logit_softcapping)
        return Gemma2ForCausalLM(Gemma2Config(**common, num_key_value_heads=2, head_dim=8)).eval()
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61)).eval()


def adapted(seed: int = 0, dropout: float = 0.0):
    """The tiny model with adapters of rank 4 on every linear of its layers, and their wrappers."""
    model = tiny()
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n]
    wrapped = adapters.wrap_linears(model, names)
    for name, wrapper in wrapped.items():
        A, B = adapters.draw_factors(seed, wrapper, name, 4)
        wrapper.set_adapter(A, B, 2.0, dropout)
    return model, wrapped


def rows(count=6, seed=0, vocabulary=61):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(0, vocabulary, (5 + 3 * (i % 4),), generator=generator)
        labels = ids.clone()
        labels[: 2 + i % 3] = IGNORED
        made.append(Encoded(ids, labels))
    return made
