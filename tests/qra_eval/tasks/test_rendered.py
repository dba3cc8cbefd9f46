"""An example is shown as it is learnt: the template's text, where the answer begins, and how it ends."""

from __future__ import annotations

import pytest

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import make_task, render_example
from qra_eval.tasks.own import TextTask

CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("row", "template", "pieces"),
    [
        ({"prompt": "Déjà {}", "answer": "vu"}, None, [("Déjà {}", False), (" vu<|end|>", True)]),
        (
            {"messages": [{"role": "user", "content": "Hi {}"}, {"role": "assistant", "content": "Ho"}]},
            CHATML,
            [("<user>Hi {}<|end|><assistant>", False), ("Ho<|end|>", True)],
        ),
        (
            {"question": "{}?", "choices": ["no", "yes"], "answer": 1},
            None,
            [("Question: {}?\nAnswer:", False), (" yes<|end|>", True)],
        ),
    ],
)
def test_pieces_are_the_text_and_say_what_is_learnt(row, template, pieces):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    task = make_task([{**row, next(iter(row)): _numbered(next(iter(row.values())), i)} for i in range(9)])
    example = task.split("train")[0]
    (number,) = (c for c in example.prompt if c.isdecimal())
    assert render_example(task, tokenizer, 64) == [(text.format(number), learnt) for text, learnt in pieces]
    assert task.make_prompt(example, tokenizer) == pieces[0][0].format(number)


def _numbered(value, i):
    if isinstance(value, str):
        return value.format(i)
    return [{**turn, "content": turn["content"].format(i)} for turn in value]


def test_running_text_is_all_learnt(monkeypatch):
    monkeypatch.setattr(TextTask, "block_characters", 5)
    task = make_task([{"text": f"Line {i}"} for i in range(9)])
    assert [learnt for _, learnt in render_example(task, byte_tokenizer(), 20)] == [True]
