"""A small random model and its tokenizer, built in code."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from qra_eval.models.families import tiny_config
from qra_eval.models.loaded import STORAGE_DTYPE, LoadedModel, finish

END, PAD = "<|end|>", "<|pad|>"


def tiny_model(
    seed: int = 0,
    layers: int = 4,
    hidden: int = 64,
    vocab: int | None = None,
    kind: str = "llama",
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """A random model with a tokenizer of single bytes; the same for the same arguments.

    Args:
        vocab: rows of the embedding, at least 258; default: 320.
        kind: one of `qra_eval.models.families.FAMILIES`.
    """
    tokenizer = byte_tokenizer()
    model = _build(kind, seed, layers, hidden, vocab or 320, tokenizer).to(dtype or STORAGE_DTYPE)
    return finish(model, tokenizer, "tiny", "tiny", device)


def byte_tokenizer() -> Any:
    """A tokenizer with a token for each byte, an end and a padding token; encodes and decodes any text exactly."""
    from transformers import PreTrainedTokenizerFast

    known = [END, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(known)}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (END, PAD)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def _build(kind: str, seed: int, layers: int, hidden: int, vocab: int, tokenizer: Any) -> Any:
    from transformers import AutoModelForCausalLM

    if vocab < len(tokenizer):
        raise ValueError(f"a vocabulary of {vocab} is too small for the tokenizer's {len(tokenizer)} tokens")
    config = tiny_config(
        kind,
        hidden=hidden,
        layers=layers,
        vocabulary=vocab,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
