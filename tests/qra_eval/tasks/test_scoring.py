"""Greedy answers are those of the plainest computation, one text at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny_config_model
from transformers import GenerationConfig

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks.encoding import truncate_left
from qra_eval.tasks.scoring import generate_answers

TOKENIZER = byte_tokenizer()


def answer(model, prompts, most, tokenizer=TOKENIZER, **options):
    return generate_answers(model, tokenizer, tokenizer(prompts)["input_ids"], most, **options)


@pytest.fixture(scope="module")
def model():
    return tiny_config_model("llama", vocab_size=258)


def greedy(model, prompt: str, count: int) -> list[int]:
    ids = TOKENIZER(prompt)["input_ids"]
    new: list[int] = []
    while len(new) < count:
        logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        new.append(int(logits.argmax()))
        if new[-1] == TOKENIZER.eos_token_id:
            break
    return new


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
def test_answers_are_those_of_plain_greedy_decoding_whatever_the_batch(family):
    model = tiny_config_model(family, vocab_size=258)
    prompts = ["a", "a much longer prompt than the others", "mid size", "12 + 7 ="]
    expected = [TOKENIZER.decode(greedy(model, prompt, 12), skip_special_tokens=True) for prompt in prompts]
    assert answer(model, prompts, 12, batch_size=1) == expected
    assert answer(model, prompts, 12, batch_size=3) == expected
    ends = sorted(set(expected[0]) - {"\ufffd"})
    expected = [
        text[: min((text.find(end) for end in ends if end in text), default=None)] for text in expected
    ]
    assert len(set(map(len, expected))) > 1
    assert answer(model, prompts, 12, batch_size=4, stop=ends) == expected


def test_answers_are_greedy_whatever_the_models_own_settings_ask_for(model):
    prompts = ["a", "12 + 7 ="]
    expected = answer(model, prompts, 12)
    own = model.generation_config
    model.generation_config = asked = GenerationConfig(
        do_sample=True,
        temperature=3.0,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        num_beams=2,
        num_return_sequences=2,
        stop_strings=["a"],
    )
    try:
        assert answer(model, prompts, 12) == expected
        assert model.generation_config is asked
    finally:
        model.generation_config = own


class Scripted:
    """A tokenizer's text, played back by a model that ignores what it is given."""

    def __init__(self, model, text: str):
        self.model, self.ids = model, TOKENIZER(text)["input_ids"]
        self.model.register_forward_hook(self.write)
        self.steps = 0

    def write(self, module, args, output):
        output.logits = torch.zeros(output.logits.shape)
        output.logits[:, -1, self.ids[min(self.steps, len(self.ids) - 1)]] = 1
        self.steps += 1
        return output


def test_an_answer_ends_at_the_end_token_and_before_the_first_stop_text():
    script = Scripted(tiny_config_model("llama", vocab_size=258), " 12\n#### 12\n\nQuestion: next" + "x" * 50)
    answers = answer(script.model, ["p", "q"], 60, batch_size=2, stop=("Question:", "\n\n\n"))
    assert answers == [" 12\n#### 12\n\n"] * 2
    assert script.steps == len(" 12\n#### 12\n\nQuestion:")
    script = Scripted(tiny_config_model("llama", vocab_size=258), "ab<|end|>cd")
    assert answer(script.model, ["p"], 60) == ["ab"]
    assert script.steps == 3


def test_a_long_prompt_keeps_its_start_token_as_a_row_that_is_tuned_on_does():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ids = [tokenizer.bos_token_id, *range(10, 20)]
    assert truncate_left(ids, 4, tokenizer) == [tokenizer.bos_token_id, 17, 18, 19]
    assert truncate_left(ids, 11, tokenizer) == ids
    assert truncate_left(ids[1:], 4, tokenizer) == [16, 17, 18, 19]
    assert truncate_left(ids, 1, tokenizer) == [19]


def test_generating_leaves_the_model_in_its_mode(model):
    model.train()
    answer(model, ["a"], 2)
    assert model.training
    model.eval()
