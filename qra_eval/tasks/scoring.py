"""Log-likelihoods of the choices of multiple-choice questions, and the scores that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qra_eval.tasks.encoding import Chat, encode_pair
from qra_eval.tasks.example import Example
from qra_search.errors import BadInput


def score_choices(log_likelihoods: np.ndarray, examples: Sequence[Example]) -> dict[str, list[float]]:
    """All that questions are judged by, one number a question, named as in lm-evaluation-harness where it has them.

    accuracy says whether the likeliest choice is right (`acc`), accuracy_norm likewise by log-likelihood a
    character (`acc_norm`); choice_loss is the cross-entropy of the choices among themselves, in nats.

    Args:
        log_likelihoods: float (N, C) in nats, -inf if a question has fewer choices.
    """
    values, labels = log_likelihoods, np.array([example.label for example in examples])
    characters = np.ones(values.shape)
    for i, example in enumerate(examples):
        lengths = [len(choice.removeprefix(" ")) for choice in example.choices]
        characters[i, : len(lengths)] = np.maximum(lengths, 1)
    top = values.max(axis=1)
    totals = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    return {
        "accuracy": (values.argmax(axis=1) == labels).astype(float).tolist(),
        "accuracy_norm": ((values / characters).argmax(axis=1) == labels).astype(float).tolist(),
        "choice_loss": (totals - values[np.arange(len(labels)), labels]).tolist(),
    }


def measure_choices(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_length: int,
    chat: bool = False,
) -> np.ndarray:
    """Log-likelihood of every choice of every example, as lm-evaluation-harness has it: see `score_choices`.

    Args:
        max_length: most tokens of a row, the left is cut.
        chat: put prompts through the chat template; choices then lose the space before them, and follow what the
            template puts before an answer, as they were learnt.

    Raises:
        BadInput: an example has no choices or no label.
    """
    from qra_eval.tasks.losses import measure_row_losses  # torch, which a task that is refused does without

    rows, places = [], []
    for i, example in enumerate(examples):
        if len(example.choices) < 2 or example.label is None:
            raise BadInput(
                f"{example.prompt[:60]!r} is not a multiple-choice example: choices or label are missing"
            )
        prompt = example.prompt
        if chat:
            rendered = Chat(example, tokenizer)
            prompt = rendered.prompt + rendered.opening
        for j, choice in enumerate(example.choices):
            own = choice.strip() if chat else choice
            rows.append(encode_pair(tokenizer, prompt, own, max_length, special=not chat))
            places.append((i, j))
    was_training = model.training
    losses, _ = measure_row_losses(model, rows, batch_size, next(model.parameters()).device)
    model.train(was_training)
    values = np.full((len(examples), max(len(example.choices) for example in examples)), -np.inf)
    values[tuple(np.array(places).T)] = -np.array(losses)
    return values
