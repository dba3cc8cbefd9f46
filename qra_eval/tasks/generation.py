"""Greedy answers to many prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qra_eval.tasks.encoding import encode_prompt, truncate_left


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
        room, heads = max(1, room), heads or [0] * len(ids)
        ids = [truncate_left(some, room, tokenizer, head=head) for some, head in zip(ids, heads, strict=True)]
    known = model.get_input_embeddings().num_embeddings  # padding is masked: any token of the model's will do
    pad = next(
        (p for p in (tokenizer.pad_token_id, tokenizer.eos_token_id) if p is not None and p < known), 0
    )
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known_ends = {
        tokenizer.eos_token_id,
        *(of_model if isinstance(of_model, list | tuple) else [of_model]),
        *ends,
    }
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
