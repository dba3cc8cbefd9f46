"""A tokenizer of byte-level pairs learned from texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from qra_eval.models.tiny import END, PAD, byte_tokenizer


def word_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Digits always alone; encodes any text exactly, in `size` tokens, the first two for the end and padding."""
    tokenizer = byte_tokenizer()
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size - 2, initial_alphabet=alphabet, show_progress=False)
    )
    learnt = json.loads(learner.to_str())["model"]
    known = [END, PAD, *sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)]
    vocabulary = {token: index for index, token in enumerate(known)}
    tokenizer.backend_tokenizer.model = BPE(
        vocab=vocabulary, merges=[tuple(pair) for pair in learnt["merges"]]
    )
    return tokenizer
