"""Rows hold prompt and answer, labels on the answer alone; batches hold every row once with little padding."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from word_tokenizer import word_tokenizer

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import Example
from qra_eval.tasks.encoding import IGNORED, Chat, encode_example, encode_prompt
from qra_eval.tasks.example import make_example
from qra_eval.tasks.own import JSONLTask
from qra_search import BadInput

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


CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|end|>' }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# As some reasoning models do: an empty thought is put before the last answer alone.
THINKING = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}{{ m.content + '<|end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "More?"},
    {"role": "assistant", "content": "No"},
]


def tokenizer(template):
    made = byte_tokenizer()
    made.chat_template = template
    return made


def encode(turns, made, max_length):
    example = Example("", turns[-1]["content"], messages=tuple(turns[:-1]))
    return encode_example(example, made, max_length, chat=True)


def learnt(row, made):
    """The texts with labels, in order."""
    texts, last = [], False
    for token, label in zip(row.input_ids.tolist(), row.labels.tolist(), strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            texts = [*texts, ""] if not last else texts
            texts[-1] += made.decode([token])
        last = label != IGNORED
    return texts


@pytest.mark.parametrize(
    ("template", "learns"), [(CHATML, ["No<|end|>"]), (MARKED, ["Ho<|end|>", "No<|end|>"])]
)
def test_marked_answers_are_learnt_or_the_last_with_what_ends_it_and_nothing_else(template, learns):
    made = tokenizer(template)
    row = encode(TURNS, made, 512)
    assert made.decode(row.input_ids).rstrip() == made.apply_chat_template(TURNS, tokenize=False).rstrip()
    assert learnt(row, made) == learns and row.cut == 0


@pytest.mark.parametrize("said", ["No", "d", "end", "think", ">"])
def test_an_answer_that_the_template_has_too_is_found_and_ended(said):
    turns = [*TURNS[:-1], {"role": "assistant", "content": said}]
    for template, before in ((CHATML, ""), (THINKING, "<think></think>")):
        made = tokenizer(template)
        assert learnt(encode(turns, made, 512), made) == [f"{before}{said}<|end|>"]


@pytest.fixture
def answers(monkeypatch):
    """What a task makes of a text that a model says to a conversation, and the call of the model that it made."""

    def answer(said, made, example, most=9, room=200):
        heard = []
        monkeypatch.setattr(
            "qra_eval.tasks.base.generate_answers",
            lambda *given, **more: heard.append((given, more)) or [said],
        )
        task = JSONLTask([{"messages": TURNS}] * 3, chat=True)
        return task.answer_examples(None, made, [example], most, max_length=room)[0], *heard

    return answer


@pytest.mark.parametrize("said", ["k", "think", "n", "No"])
def test_an_empty_thought_is_no_part_of_an_answer_and_told_apart_from_it(answers, said):
    made, example = tokenizer(THINKING), Example("", said, messages=tuple(TURNS[:-1]))
    chat = Chat(example, made)
    assert (chat.opening, chat.closing) == ("<think></think>", "<|end|>")
    answer, (given, _) = answers(said, made, example)
    assert answer == said and made.decode(given[2][0]).endswith("<|assistant|>\n<think></think>")


@pytest.mark.parametrize(("end", "ends"), [("<|im_end|>", ["<|im_end|>"]), ("", [])])
def test_an_answer_ends_with_the_special_token_that_ends_its_turn(answers, end, ends):
    """As of a base model, whose tokenizer names the end of a text."""
    made = tokenizer(CHATML.replace("<|end|>", end))
    made.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    _, (_, heard) = answers("", made, make_example({"messages": TURNS}, ""))
    assert made.convert_ids_to_tokens(heard["ends"]) == ends


@pytest.mark.parametrize("marked", [True, False])
def test_a_template_that_prints_the_date_gives_the_same_tokens_every_day(marked):
    made = tokenizer("{{ 'Today: ' + strftime_now('%d %b %Y') }}" + (MARKED if marked else CHATML))
    row = encode(TURNS, made, 512)
    assert made.decode(row.input_ids).startswith("Today: 26 Jul 2024")


def test_a_blank_answer_is_refused():
    with pytest.raises(BadInput, match="the answer to 'Hi' is empty"):
        encode_example(Example("Hi", " "), tokenizer(CHATML), 64, chat=True)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('only users') }}", "rejects a row with the roles system, user.*only users"),
        ("{% if 0 %}{% generation %}{% endgeneration %}{% endif %}{{ messages[1].content }}", "marks no"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template, why):
    with pytest.raises(ValueError, match=why) as caught:
        encode(TURNS, tokenizer(template), 64)
    assert "\n" not in str(caught.value)


def test_sharegpt_is_read_as_messages_are_and_what_follows_the_last_answer_is_left_out():
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": speakers[t["role"]], "value": t["content"]} for t in TURNS]
    rows = [
        {"messages": TURNS},
        {"conversations": shared},
        {"conversations": [*shared, {"from": "human", "value": "Bye"}]},
    ]
    one, two, three = (make_example(row, "x") for row in rows)
    assert one == two == three and list(one.messages) == TURNS[:-1]


@pytest.mark.parametrize(
    ("chat", "template", "learns"),
    [
        (None, MARKED, ["Ho<|end|>", "No<|end|>"]),
        (None, CHATML, ["No<|end|>"]),
        (None, None, [" No<|end|>"]),
        (False, CHATML, [" No<|end|>"]),
        (True, CHATML, ["No<|end|>"]),
    ],
)
def test_conversations_use_the_template_where_there_is_one(tmp_path, chat, template, learns):
    path = tmp_path / "x.jsonl"
    turns = [[*TURNS[:3], {"role": "user", "content": f"{i}"}, TURNS[4]] for i in range(9)]
    path.write_text("".join(json.dumps({"messages": some}) + "\n" for some in turns))
    task, made = JSONLTask(str(path), chat=chat), tokenizer(template)
    (row,) = task.encode(task.split("test")[:1], made, 512)
    assert learnt(row, made) == learns
