"""Rows hold prompt and answer, labels on the answer alone; batches hold every row once with little padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from word_tokenizer import word_tokenizer

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import Example, encode_example
from qra_eval.tasks.encoding import IGNORED, encode_prompt

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id


def with_bos():
    """A tokenizer that puts a start token before, and an end token after, every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="<s> $A <|end|>", special_tokens=[("<s>", tokenizer.bos_token_id), ("<|end|>", END)]
    )
    return tokenizer


@given(st.text(max_size=40), st.text(min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_row_is_prompt_then_answer_then_end_and_only_the_latter_have_labels(prompt, answer):
    row = encode_example(Example(prompt, answer), TOKENIZER, 4096)
    assert TOKENIZER.decode(row.input_ids[:-1]) == prompt + answer and row.input_ids[-1] == END
    labelled = row.labels != IGNORED
    assert torch.equal(row.labels[labelled], row.input_ids[labelled])
    assert TOKENIZER.decode(row.labels[labelled][:-1]) == answer
    assert not labelled[: len(row) - int(labelled.sum())].any()


@given(st.integers(0, 30), st.integers(1, 30), st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_a_long_row_loses_the_left_of_its_prompt_and_never_the_start_of_its_answer(before, after, most):
    prompt, answer = "".join(chr(97 + i % 26) for i in range(before)), "0123456789" * 3
    row = encode_example(Example(prompt, answer[:after]), TOKENIZER, most)
    assert len(row) == min(most, before + after + 1)
    kept = TOKENIZER.decode(row.labels[row.labels != IGNORED], skip_special_tokens=True)
    assert kept and answer.startswith(kept)
    assert before == 0 or row.labels[0] == IGNORED
    shown = TOKENIZER.decode(row.input_ids[row.labels == IGNORED])
    assert prompt.endswith(shown)


def test_tokens_are_split_where_the_prompt_ends_even_where_the_tokenizer_would_join_across():
    tokenizer = word_tokenizer(["foobar foobar foobar"], 300)
    assert len(tokenizer("foobar")["input_ids"]) == 1
    row = encode_example(Example("foo", "bar"), tokenizer, 64)
    assert tokenizer.decode(row.labels[row.labels != IGNORED][:-1]) == "bar"
    assert tokenizer.decode(row.input_ids[row.labels == IGNORED]) == "foo"


def test_a_start_token_comes_once_and_an_end_token_comes_after_the_answer_only():
    tokenizer = with_bos()
    row = encode_example(Example("ab", "cd"), tokenizer, 64)
    ids = row.input_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert ids.count(END) == 1 and ids[-1] == END
    assert int((row.labels != IGNORED).sum()) == 3
    assert encode_prompt(tokenizer, "ab", special=False) == TOKENIZER("ab")["input_ids"]


CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "answer", "learnt"),
    [
        (CHAT, " there", "there</turn>"),
        (CHAT.replace("m.content", "m.content | trim"), " there\n", "there</turn>"),
        (CHAT.replace("</turn>", ""), " there", "there<|end|>"),
        (CHAT.replace("m.content", "m.content | upper"), " there", "there<|end|>"),
    ],
    ids=["ended", "trimmed", "endless", "changed"],
)
def test_a_chats_answer_follows_the_template_and_ends_as_a_turn_does_or_with_the_end_token(
    template, answer, learnt
):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    user = {"role": "user", "content": "Hi"}
    for turns in ((user,), ({"role": "system", "content": "Be brief."}, user)):
        example = Example("Hi", answer, messages=turns if len(turns) > 1 else ())
        row = encode_example(example, tokenizer, 200, chat=True)
        before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(row.input_ids) == before + learnt
        assert tokenizer.decode(row.labels[row.labels != IGNORED]) == learnt


def test_an_answer_without_tokens_is_refused():
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no tokens"):
        encode_example(Example("ab", ""), endless, 10)
