"""An example is shown as it is learnt: the template's text, where the answer begins, and how it ends."""

from __future__ import annotations

import pytest

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import Piece, make_task, rendered_example

CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("row", "template", "pieces"),
    [
        ({"prompt": "Déjà {}", "answer": "vu"}, None, [("Déjà {}", 0, 0), (" vu", 1, 0), ("<|end|>", 1, 1)]),
        (
            {"messages": [{"role": "user", "content": "Hi {}"}, {"role": "assistant", "content": "Ho"}]},
            CHATML,
            [("<user>Hi {}", 0, 0), ("<|end|>", 0, 1), ("<assistant>", 0, 0), ("Ho", 1, 0), ("<|end|>", 1, 1)],
        ),
        ({"question": "{}?", "choices": ["no", "yes"], "answer": 1}, None,
         [("Question: {}?\nAnswer:", 0, 0), (" yes", 1, 0), ("<|end|>", 1, 1)]),
    ],
)  # fmt: skip
def test_pieces_are_the_text_and_say_what_is_learnt(row, template, pieces):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    rows = [{**row, next(iter(row)): _numbered(next(iter(row.values())), i)} for i in range(9)]
    task = make_task(rows)
    for seed in (0, 1, 100):
        shown = rendered_example(task, tokenizer, 64, seed)
        examples = task.split("calibration")
        example = examples[seed % len(examples)]
        (number,) = (c for c in example.prompt if c.isdecimal())
        assert shown.pieces == tuple(Piece(text.format(number), bool(a), bool(b)) for text, a, b in pieces)
        assert shown.end == "<|end|>" and shown.template == (template is not None) and shown.cut == 0
        assert task.prompt(example, tokenizer) == "".join(p.text for p in shown.pieces if not p.learnt)
    (row,) = task.encode([example], tokenizer, 64)
    assert shown.tokens == len(row) and shown.learnt == int((row.labels >= 0).sum())


def _numbered(value, i):
    if isinstance(value, str):
        return value.format(i)
    return [{**turn, "content": turn["content"].format(i)} for turn in value]


def test_a_row_that_is_too_long_says_what_was_cut_and_running_text_is_all_learnt():
    tokenizer = byte_tokenizer()
    rows = [{"prompt": "x" * 50 + str(i), "answer": "y"} for i in range(9)]
    shown = rendered_example(make_task(rows), tokenizer, 20)
    assert (shown.tokens, shown.cut) == (20, 51 + 3 - 20) and "".join(p.text for p in shown.pieces).endswith(
        " y<|end|>"
    )
    text = rendered_example(make_task([{"text": f"Line {i}"} for i in range(9)], block_characters=5), tokenizer, 20)
    assert [piece.learnt for piece in text.pieces] == [True] and text.end is None
