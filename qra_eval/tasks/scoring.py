"""What a model answers: greedy answers to prompts, and log-likelihoods of choices with the scores that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from qra_eval.tasks.encoding import Chat, encode_pair, encode_prompt, truncate_left
from qra_eval.tasks.example import Example
from qra_search.errors import BadInput


def score_choices(log_likelihoods: np.ndarray, examples: Sequence[Example]) -> dict[str, list[float]]:
    """All that questions are judged by, one number a question, named as in lm-evaluation-harness where it has them.

    accuracy says whether the likeliest choice is right (`acc`), accuracy_norm likewise by log-likelihood a
    character (`acc_norm`); choice_loss is the cross-entropy of the choices among themselves, in nats.

    Args:
        log_likelihoods: float (N, C) in nats, -inf if a question has fewer choices.
    """
    values = log_likelihoods
    labels = np.array([example.label for example in examples])
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

    rows = []
    places = []
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


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    batch_size: int = 8,
    stop: Sequence[str] = (),
    room: int | None = None,
    special: bool = True,
    heads: Sequence[int] | None = None,
    ends: Sequence[int] = (),
) -> list[str]:
    """Continue each prompt greedily until the end token, a stop text, or `max_new_tokens`.

    Prompts of similar length share a batch and are padded at the left. The answer ends before the first stop text.

    Args:
        stop: texts that end an answer.
        room: tokens of a prompt, at least one; a longer one loses its left.
        special: put the tokenizer's start token before the prompts; off for prompts from a chat template.
        heads: tokens at the left of each prompt that it keeps, such as the system's turn; at most half of `room`.
        ends: tokens that end an answer, beside those of the tokenizer and the model.
    """
    import torch  # seconds, which a task that is refused does without
    from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria

    from qra_eval.tasks.batches import group_by_length

    ids = [encode_prompt(tokenizer, prompt, special=special) for prompt in prompts]
    if room is not None:
        heads = heads or [0] * len(ids)
        cut = zip(ids, heads, strict=True)
        ids = [truncate_left(some, max(1, room), tokenizer, head=head) for some, head in cut]
    known = model.get_input_embeddings().num_embeddings  # padding is masked: any token of the model's will do
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((p for p in pads if p is not None and p < known), 0)
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    model_ends = of_model if isinstance(of_model, list | tuple) else [of_model]
    known_ends = {tokenizer.eos_token_id, *model_ends, *ends}
    config = GenerationConfig(
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=sorted(known_ends - {None}) or None,
        max_new_tokens=max_new_tokens,
    )
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, list(stop))] if stop else [])
    device = next(model.parameters()).device
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    with torch.no_grad(), _set_generation_config(model, config):
        for batch in group_by_length(list(map(len, ids)), batch_size):
            longest = max(len(ids[i]) for i in batch)
            missing = [longest - len(ids[i]) for i in batch]
            tokens = torch.tensor(
                [[pad] * n + ids[i] for n, i in zip(missing, batch, strict=True)], device=device
            )
            mask = torch.tensor([[0] * n + [1] * (longest - n) for n in missing], device=device)
            out = model.generate(
                input_ids=tokens, attention_mask=mask, generation_config=config, stopping_criteria=criteria
            )
            texts = tokenizer.batch_decode(
                out[:, longest:], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text[: min((text.find(end) for end in stop if end in text), default=None)]
    model.train(was_training)
    return answers


@contextmanager
def _set_generation_config(model: Any, config: Any) -> Iterator[None]:
    """A model with this config in place of its own, which `generate` takes all from that is not given, such as sampling
    or a repetition penalty."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    own = getattr(base, "generation_config", None)
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = own
