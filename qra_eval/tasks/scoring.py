"""Log-likelihoods of given continuations, and the scores of multiple-choice questions made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qra_eval.tasks.encoding import Encoded, chat_prompt, encode_pair
from qra_eval.tasks.example import Example
from qra_search.errors import BadInput

DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class ChoiceScores:
    """Scores of N questions with at most C choices each.

    Attributes:
        log_likelihoods: float (N, C) in nats, -inf if a question has fewer choices.
        characters: int (N, C), length of each choice, 1 where there is none.
        utf8_bytes: int (N, C), its length in bytes, 1 where there is none.
        labels: int (N,), the right choices.
    """

    log_likelihoods: np.ndarray
    characters: np.ndarray
    utf8_bytes: np.ndarray
    labels: np.ndarray

    def row_scores(self) -> dict[str, list[float]]:
        """All that questions are judged by, one number a question, named as in lm-evaluation-harness where it has them.

        accuracy says whether the likeliest choice is right (`acc`), accuracy_norm likewise by log-likelihood a
        character (`acc_norm`), accuracy_bytes by that a byte (`acc_bytes`). In nats, margin is the log-likelihood of
        the right choice above the best other one, and choice_loss the cross-entropy of the choices among themselves.
        """
        values, right = self.log_likelihoods, (np.arange(len(self.labels)), self.labels)
        others = values.copy()
        others[right] = -np.inf
        top = values.max(axis=1)
        totals = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
        lengths = {"accuracy": 1, "accuracy_norm": self.characters, "accuracy_bytes": self.utf8_bytes}
        chosen = {name: (values / length).argmax(axis=1) for name, length in lengths.items()}
        return {
            **{name: (choice == self.labels).astype(float).tolist() for name, choice in chosen.items()},
            "margin": (values[right] - others.max(axis=1)).tolist(),
            "choice_loss": (totals - values[right]).tolist(),
        }


def score_choices(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    chat: bool = False,
) -> ChoiceScores:
    """Log-likelihood of every choice of every example, as lm-evaluation-harness has it.

    Args:
        max_length: most tokens of a row, the left is cut; None: what the model takes.
        chat: put prompts through the chat template; choices then lose the space before them.

    Raises:
        BadInput: an example has no choices or no label.
    """
    limit = max_length or getattr(model.config, "max_position_embeddings", None) or DEFAULT_LENGTH
    width = max((len(e.choices) for e in examples), default=0)
    shape = (len(examples), width)
    characters, utf8 = np.ones(shape, dtype=np.int64), np.ones(shape, dtype=np.int64)
    rows, places = [], []
    for i, example in enumerate(examples):
        if len(example.choices) < 2 or example.label is None:
            raise BadInput(f"{example.prompt[:60]!r} is no multiple-choice example: it lacks choices or a label")
        for j, choice in enumerate(example.choices):
            prompt = example.contexts[j] if example.contexts else example.prompt
            if chat:
                prompt, choice = chat_prompt(example, tokenizer), choice.strip()
            rows.append(encode_pair(tokenizer, prompt, choice, limit, special=not chat))
            places.append((i, j))
            bare = choice.removeprefix(" ")
            characters[i, j], utf8[i, j] = max(1, len(bare)), max(1, len(bare.encode()))
    values = np.full(shape, -np.inf)
    values[tuple(np.array(places).T)] = log_likelihoods(model, rows, batch_size=batch_size)
    return ChoiceScores(values, characters, utf8, np.array([e.label for e in examples]))


def log_likelihoods(model: Any, rows: Sequence[Encoded], *, batch_size: int = 8) -> np.ndarray:
    """float (N,): sum in nats of the log-probabilities of each row's labels."""
    was_training = model.training
    from qra_eval.tasks.losses import row_losses  # torch, which a task that is refused does without

    totals, _ = row_losses(model, rows, batch_size, next(model.parameters()).device)
    model.train(was_training)
    return -np.array(totals)
