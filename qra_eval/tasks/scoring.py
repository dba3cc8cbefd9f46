"""Greedy answers and how they are scored, by functions of ours or of one's own."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from qra_eval.tasks.example import Example
from qra_search import plugins
from qra_search.errors import BadInput, format_error, shorten
from qra_search.plugins import IN_MEMORY_PREFIX

log = logging.getLogger(__name__)

Metric = Callable[[str, Example], float]
"""The score of an answer to an example, both without white space around the answer; higher is better."""
FIELDS_SCORED = 6
"""Fields of a JSON answer with a score of their own, at most."""


# -- generated answers -------------------------------------------------------------------------
def exact_match(answer: str, example: Example) -> float:
    """1.0 if an answer is the wanted one: as JSON if that is an object or list, else without case and white space
    around and between words."""
    wanted = parse_json(example.answer)
    if isinstance(wanted, dict | list):
        return float(_are_equal(parse_json(answer), wanted))
    return float(_normalize(answer) == _normalize(example.answer))


def json_f1(answer: str, example: Example) -> float:
    """F1 over the fields of a JSON object: a field counts if name and value are equal; 0.0 if the answer is none."""
    found, wanted = parse_json(answer), parse_json(example.answer)
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return 0.0
    right = sum(1 for name, value in wanted.items() if name in found and _are_equal(found[name], value))
    total = len(found) + len(wanted)
    return 2 * right / total if total else 1.0


def score_field(answer: str, example: Example, *, field: str) -> float:
    """1.0 if a field of a JSON object is the wanted one, or is missing from both; 0.0 if the answer is no object."""
    found, wanted = parse_json(answer), parse_json(example.answer)
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return 0.0
    return float(_are_equal(found.get(field), wanted.get(field)))


def make_field_metrics(answers: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """A metric for each field that most of the wanted answers have, as `field NAME`; of `FIELDS_SCORED` at most."""
    counts = Counter(name for answer in answers for name in answer)
    names = [name for name, count in counts.items() if 2 * count > len(answers)]
    return {f"field {name}": partial(score_field, field=name) for name in names[:FIELDS_SCORED]}


def parse_json(text: str) -> Any:
    """The value of a JSON text, its numbers as fractions; None if it is not JSON."""
    try:
        return json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None


def load_metrics(names: Sequence[str], functions: Mapping[str, Metric]) -> dict[str, Metric]:
    """The functions of a run's settings by their names; raises BadInput for one that cannot be had.

    Args:
        names: `FILE.py:NAME`, `module:NAME`, or `IN_MEMORY_PREFIX` and the name of one of the functions in memory.
    """
    found: dict[str, Metric] = {}
    for name in names:
        short = name.removeprefix(IN_MEMORY_PREFIX).rpartition(":")[2]
        if name.startswith(IN_MEMORY_PREFIX) and short not in functions:
            raise BadInput(
                f"this run is scored by the function {short!r}, which is not saved: go on from Python, with "
                f"open_run(folder, metrics=[{short}])"
            )
        metric = functions[short] if name.startswith(IN_MEMORY_PREFIX) else plugins.load_object(name)
        if not callable(metric):
            raise BadInput(f"metric {name} is {shorten(metric)}: a function of (answer, example) is needed")
        found[short] = metric
    return found


def check_metric(name: str, metric: Metric, example: Example) -> None:
    """Raises BadInput if a function does not give a number for an example's own answer."""
    try:
        _score_answer(metric, example.answer, example)
    except Exception as error:  # another's code may raise anything
        raise BadInput(
            f"metric {name!r} failed on the right answer of a test row ({format_error(error)}). It gets the answer as "
            "text, and must return a number"
        ) from error


def score_answers(
    name: str, metric: Metric, answers: Sequence[str], examples: Sequence[Example]
) -> list[float]:
    """The score of each answer; one on which the function fails counts as 0, and how many these are is logged."""
    scores, failures = [], []
    for answer, example in zip(answers, examples, strict=True):
        try:
            scores.append(_score_answer(metric, answer, example))
        except Exception as error:  # another's code may raise anything
            failures.append(error)
            scores.append(0.0)
    if failures:
        message = "metric %s fails on %d of %d answers, which count as 0 (%s)"
        log.warning(message, name, len(failures), len(answers), format_error(failures[0]))
    return scores


def digest_source(metric: Metric) -> str:
    """Short digest of a function's source; empty if that cannot be read."""
    function = metric.func if isinstance(metric, partial) else metric
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]
    except (OSError, TypeError):  # typed at a prompt, or no plain function
        return ""


def _score_answer(metric: Metric, answer: str, example: Example) -> float:
    """A function's score of an answer; a chat's answers have no space before them, those of other rows one."""
    score = metric(answer.strip(), replace(example, answer=example.answer.strip()))
    if not isinstance(score, bool | int | float) or not math.isfinite(score):
        raise ValueError(f"the score must be a finite number, got {shorten(score)}")
    return float(score)


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; `true` is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _normalize(text: str) -> str:
    return " ".join(text.split()).casefold()


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    batch_size: int = 8,
    stop: Sequence[str] = (),
    ends: Sequence[int] = (),
    streamer: Any = None,
) -> list[str]:
    """Continue each prompt, given as token ids, greedily until an end token, a stop text, or `max_new_tokens`.

    Prompts of similar length share a batch and are padded at the left. The answer ends before the first stop text.

    Args:
        ends: tokens that end an answer, beside those of the tokenizer and the model.
        streamer: of transformers, which is given the tokens of a single prompt as they come.
    """
    import torch  # seconds, which a task that is refused does without
    from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria

    from qra_eval.tasks.batches import group_by_length

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
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    # `generate` takes from the model's own all that is not given, such as sampling or a repetition penalty.
    own = getattr(base, "generation_config", None)
    base.generation_config = config
    try:
        for batch in group_by_length(list(map(len, prompts)), batch_size):
            longest = max(len(prompts[i]) for i in batch)
            padded = [[pad] * (longest - len(prompts[i])) + prompts[i] for i in batch]
            mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]
            out = model.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
                stopping_criteria=criteria,
                streamer=streamer,
            )
            texts = tokenizer.batch_decode(
                out[:, longest:], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text[: min((text.find(end) for end in stop if end in text), default=None)]
    finally:
        base.generation_config = own
        model.train(was_training)
    return answers
