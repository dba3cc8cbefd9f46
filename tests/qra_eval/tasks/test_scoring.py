"""Greedy answers are those of the plainest computation, one text at a time."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_families import tiny_config_model
from transformers import GenerationConfig

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import Example, make_task
from qra_eval.tasks.encoding import truncate_left
from qra_eval.tasks.scoring import (
    check_metric,
    exact_match,
    generate_answers,
    json_f1,
    load_metrics,
    score_answers,
)
from qra_search.errors import BadInput

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


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ("  Card  arrival ", " card arrival", 1.0),
        ("card arrivals", " card arrival", 0.0),
        ('{"b": 1, "a": [2]}', ' {"a":[2],"b":1}', 1.0),
        ('{"a": "X"}', '{"a":"x"}', 0.0),
        ("{a: 1}", '{"a":1}', 0.0),
        ("{}", "{}", 1.0),
        ("4.0", "4", 0.0),  # a number alone is a text
        ('{"veg":1,"n":[2.0]}', '{"veg":true,"n":[2]}', 0.0),  # true is no number
        ('{"n":[2.0]}', '{"n":[2]}', 1.0),
    ],
)
def test_exact_match_forgives_case_white_space_and_the_order_of_fields(answer, wanted, score):
    assert exact_match(answer, Example("", wanted)) == score


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ('{"a":1,"b":2}', '{"a":1,"b":3}', 0.5),  # precision 1/2, recall 1/2
        ('{"a":1}', '{"a":1,"b":2,"c":3}', 0.5),  # precision 1, recall 1/3
        ('{"a":0,"b":2.0}', '{"a":false,"b":2}', 0.5),
        ("{}", "{}", 1.0),
        ("{}", '{"a":1}', 0.0),
        ("no JSON", '{"a":1}', 0.0),
        ("[1]", '{"a":1}', 0.0),
    ],
)
def test_f1_is_over_the_fields_of_the_object(answer, wanted, score):
    assert json_f1(answer, Example("", wanted)) == pytest.approx(score)


SLOTS = """
import json

from qra_eval.tasks.own import JSONLTask


def people(answer, example):
    return float(json.loads(answer)["people"] == json.loads(example.answer)["people"])


class SlotsTask(JSONLTask):
    name = "slots"
"""


@pytest.fixture
def slots(tmp_path):
    (tmp_path / "slots.py").write_text(SLOTS)
    return tmp_path / "slots.py"


def test_a_function_of_a_file_scores_answers_and_one_that_fails_counts_as_0(slots, caplog):
    metrics = load_metrics(
        [f"{slots}:people", "in-memory:length"], {"length": lambda answer, example: len(answer)}
    )
    wanted = [Example("", ' {"people":4}')] * 3
    answers = ['{"people": 4}', '{"people": 5}', "four"]
    assert score_answers("people", metrics["people"], answers, wanted) == [1, 0, 0]
    assert "metric people fails on 1 of 3 answers, which count as 0" in caplog.text
    assert score_answers("length", metrics["length"], ["ab"], wanted[:1]) == [2.0]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("{}:poeple", "defines no 'poeple': did you mean people"),
        ("{}", "does not name an object: write FILE.py:NAME or module:NAME"),
        ("none.py:people", "none.py could not be loaded"),
        ("no_such_module:f", "module no_such_module could not be loaded"),
        ("in-memory:f", "scored by the function 'f', which is not saved: go on from Python"),
        ("qra_eval.tasks.base:ANSWER_MARGIN", "a function of \\(answer, example\\) is needed"),
    ],
)
def test_a_metric_that_cannot_be_used_is_one_line(slots, name, why):
    with pytest.raises(BadInput, match=why):
        load_metrics(name.format(slots, slots).split(), {})


def test_a_score_that_is_not_finite_counts_as_0_and_answers_have_no_white_space_at_their_ends(caplog):
    wanted = [Example("", " yes"), Example("", "yes")]
    same = score_answers("same", lambda answer, example: answer == example.answer, ["yes", " yes"], wanted)
    assert same == [1, 1]
    assert score_answers("odd", lambda answer, example: float("nan"), ["a", "b"], wanted) == [0, 0]
    assert (
        "metric odd fails on 2 of 2 answers" in caplog.text
        and "must be a finite number, got nan" in caplog.text
    )


def test_a_metric_is_tried_on_a_wanted_answer_before_anything_is_spent():
    with pytest.raises(
        BadInput, match="metric 'f' failed on the right answer .* .KeyError: 'x'.. It gets the answer as text"
    ):
        check_metric("f", lambda answer, example: {}["x"], Example("a", "b"))
    with pytest.raises(
        BadInput, match="metric 'f' failed on .*must be a finite number, got None.*must return a number"
    ):
        check_metric("f", lambda answer, example: None, Example("a", "b"))


def test_a_task_of_a_file_has_the_splits_of_the_rows_it_reads(slots, tmp_path):
    rows = [{"prompt": f"{i} of us", "answer": {"people": i}} for i in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    own, plain = make_task(f"{slots}:SlotsTask", data=tmp_path / "rows.json"), make_task(rows)
    assert own.name == "slots" and all(own.split(split) == plain.split(split) for split in ("train", "test"))
    assert plain.split("test")[0].answer.startswith(' {"people":')
    assert set(plain.metrics) == {"exact_match", "f1", "field people"}


def test_a_json_answer_is_scored_by_field_and_made_of_columns(caplog):
    rows = [{"said": f"{i} of us", "intent": "book", "words": f"for {i}"} for i in range(20)]
    task = make_task(rows, columns={"prompt": "said", "answer": ["intent", "words"]})
    example = task.split("train")[0]
    number = example.prompt.split()[0]
    assert example.answer == f' {{"intent":"book","words":"for {number}"}}'
    answer = '{"intent":"book","words":"for nobody"}'
    scores = {name: metric(answer, example) for name, metric in task.metrics.items()}
    assert scores == {"exact_match": 0.0, "f1": 0.5, "field intent": 1.0, "field words": 0.0}
    assert task.metrics["field intent"]("book", example) == 0.0, "which is no object"
    assert all(task.metric_digests.values())
    make_task([{"prompt": f"{i}", "answer": [i, "a"]} for i in range(20)]).split("test")
    assert "20 answers of jsonl are lists, and are learnt as JSON text" in caplog.text
