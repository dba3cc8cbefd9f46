"""Greedy answers to many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qra_eval.tasks.encoding import prompt_ids, without_left

STRETCH = 32
"""Tokens after which answers that have ended leave their batch."""


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
    from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria

    from qra_eval.tasks.batches import by_length

    keep = 0 if max_length is None else max(1, max_length - max_new_tokens)
    ids = [prompt_ids(tokenizer, prompt, special=special) for prompt in prompts]
    ids = [without_left(some, keep, tokenizer) if keep else some for some in ids]
    known = model.get_input_embeddings().num_embeddings  # padding is masked: any token of the model's will do
    pad = next((p for p in (tokenizer.pad_token_id, tokenizer.eos_token_id) if p is not None and p < known), 0)
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list | tuple) else [of_model])} - {None}
    # A config of our own: a model's may ask for sampling.
    config = GenerationConfig(
        do_sample=False, pad_token_id=pad, eos_token_id=sorted(ends) or None, return_dict_in_generate=True
    )
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, list(stop))] if stop else [])
    device = next(model.parameters()).device
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in by_length(list(map(len, ids)), batch_size):
            longest = max(len(ids[i]) for i in batch)
            missing = [longest - len(ids[i]) for i in batch]
            tokens = torch.tensor([[pad] * n + ids[i] for n, i in zip(missing, batch, strict=True)], device=device)
            mask = torch.tensor([[0] * n + [1] * (longest - n) for n in missing], device=device)
            rows, left = list(batch), max_new_tokens
            past: dict[str, Any] = {}
            while rows:
                config.max_new_tokens = min(left, STRETCH)
                left -= config.max_new_tokens
                out = model.generate(
                    input_ids=tokens, attention_mask=mask, generation_config=config, stopping_criteria=criteria, **past
                )  # fmt: skip
                written = out.sequences[:, longest:]
                texts = tokenizer.batch_decode(written, skip_special_tokens=True)
                for i, text in zip(rows, texts, strict=True):
                    answers[i] = text[: min((text.find(end) for end in stop if end in text), default=None)]
                ended = torch.isin(written, torch.tensor(sorted(ends), dtype=torch.long, device=device)).any(1).tolist()
                going = [
                    k for k, (over, text) in enumerate(zip(ended, texts, strict=True))
                    if left and not over and not any(end in text for end in stop)
                ]  # fmt: skip
                rows = [rows[k] for k in going]
                if rows:  # those that have ended take no part in what follows
                    kept = torch.tensor(going, device=device)
                    name = "cache" if "cache" in out else "past_key_values"  # before transformers 5.24
                    cache: Any = out.get(name)
                    layers: Any = getattr(cache, "layers", None)
                    # A recurrent state may not let rows go: what was written is then passed through the model again.
                    dropping = bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)
                    past = {name: cache} if dropping else {}
                    if dropping:
                        cache.batch_select_indices(kept)
                    tokens = out.sequences[kept]
                    mask = torch.cat((mask[kept], mask.new_ones(len(rows), tokens.shape[1] - mask.shape[1])), 1)
    model.train(was_training)
    return answers
