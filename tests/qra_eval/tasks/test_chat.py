"""Conversations: the chat template around all turns, and labels on answers."""

from __future__ import annotations

import json

import pytest
import torch

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks.encoding import IGNORED, Chat, encode_example
from qra_eval.tasks.example import Example, make_example
from qra_eval.tasks.own import JSONLTask
from qra_eval.tasks.scoring import measure_choices
from qra_search import BadInput

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


def test_a_choice_is_scored_where_the_model_learns_to_say_it(monkeypatch):
    made, asked = tokenizer(THINKING), TURNS[3]
    monkeypatch.setattr(
        "qra_eval.tasks.batches.measure_row_losses", lambda model, rows, *rest: (read(rows), None)
    )
    texts: list[str] = []

    def read(rows):
        texts.extend(made.decode(row.input_ids) for row in rows)
        return [1.0] * len(rows)

    choices = Example(asked["content"], " No", (" Yes", " No"), 1)
    measure_choices(torch.nn.Linear(1, 1), made, [choices], batch_size=2, max_length=200, chat=True)
    whole = made.apply_chat_template([asked, {"role": "assistant", "content": "No"}], tokenize=False)
    assert whole.startswith(texts[1]) and texts[1].endswith("<think></think>No")


def test_a_blank_answer_is_refused():
    with pytest.raises(BadInput, match="the answer to 'Hi' is empty"):
        encode_example(Example("Hi", " "), tokenizer(CHATML), 64, chat=True)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('only users') }}", "rejects a conversation of roles system, user.*only users"),
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
