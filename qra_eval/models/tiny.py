"""A small random model and its tokenizer, built in code."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from qra_eval.models.loaded import STORAGE_DTYPE, LoadedModel, prepare_model

END, PAD = "<|end|>", "<|pad|>"


def make_tiny_model(*, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> LoadedModel:
    """A random Llama of four layers with a tokenizer of single bytes, always the same."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # rotary frequencies, a buffer, stay float32
        parameter.data = parameter.data.to(dtype or STORAGE_DTYPE)
    return prepare_model(model, tokenizer, device, name="tiny", spec="tiny")


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
