"""Greedy answers to many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qra_eval.tasks.encoding import prompt_ids


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 256,
    *,
    batch_size: int = 8,
    stop: Sequence[str] = (),
    max_length: int | None = None,
    special: bool = True,
) -> list[str]:
    """Continue each prompt greedily until the end token, a stop text, or `max_new_tokens`.

    Prompts of similar length share a batch and are padded at the left. The answer ends before the first stop text.

    Args:
        stop: texts that end an answer.
        max_length: most tokens of prompt and answer; a longer prompt loses its left.
        special: put the tokenizer's start token before the prompts; off for prompts from a chat template.
    """
    import torch  # seconds, which a task that is refused does without

    from qra_eval.tasks.batches import by_length

    keep = None if max_length is None else max(1, max_length - max_new_tokens)
    ids = [_tail(prompt_ids(tokenizer, prompt, special=special), keep) for prompt in prompts]
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in by_length(list(map(len, ids)), batch_size):
            texts = _generate(model, tokenizer, [ids[i] for i in batch], max_new_tokens, tuple(stop))
            for i, text in zip(batch, texts, strict=True):
                answers[i] = _cut(text, stop)
    model.train(was_training)
    return answers


def _generate(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], max_new_tokens: int, stop: tuple[str, ...]
) -> list[str]:
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    ends = [tokenizer.eos_token_id, *_ends_of(model)]
    # A config of our own: a model's may ask for sampling.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=sorted({end for end in ends if end is not None}) or None,
    )
    criteria = StoppingCriteriaList()
    if stop:
        criteria.append(_StopAtText(tokenizer, stop, longest))
    out = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config, stopping_criteria=criteria)
    return tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


class _StopAtText:
    """Tells for each row whether its answer so far holds one of the texts; decodes only what could hold it newly."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int):
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        # A token that ends a stop text may have begun before it, and a text has at most one token for each byte.
        self.window = max(len(text.encode()) for text in stop) + 1

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        begin = max(self.start, input_ids.shape[1] - self.window)
        tails = self.tokenizer.batch_decode(input_ids[:, begin:])
        done = [any(text in tail for text in self.stop) for tail in tails]
        return torch.tensor(done, device=input_ids.device)


def _ends_of(model: Any) -> list[int | None]:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]


def _tail(ids: list[int], keep: int | None) -> list[int]:
    return ids if keep is None else ids[-keep:]


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [text.find(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text
