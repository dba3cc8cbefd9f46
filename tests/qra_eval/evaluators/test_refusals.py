"""Settings and data that the real evaluator refuses, its count of rows, and searches by the task's own measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluators import make_evaluator

from qra_eval import hub
from qra_eval.evaluators import quantized_lora
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks import make_task
from qra_eval.tasks.base import ANSWER_MARGIN
from qra_search.app.evaluator import RowCount
from qra_search.errors import BadInput

CASES: list[tuple[dict[str, Any], str]] = [
    ({"options": {"foo": 3}}, "the evaluator 'quantized-lora' has no option 'foo'"),
    ({"training": {"alfa": 7}}, "training.alfa is not a known field: did you mean alpha?"),
    (
        {"model": {"name": "tiny", "device": "gpu"}},
        "device must be auto, cpu, cuda or cuda:N, got 'gpu'",
    ),
    ({"model": {"name": "rows.jsonl"}}, "rows.jsonl is not a model"),
    ({"model": {"name": "text.gguf"}}, "text.gguf is not a GGUF file of a known model, or is damaged"),
    (
        {"model": {"name": "someone/model"}},
        "the hub does not give it (no route): check its name and the network",
    ),
    ({"task": {"name": "someone/rows"}}, "data set 'someone/rows' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k"}}, "data set 'openai/gsm8k' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k", "data": "none"}}, "none has no gsm8k_test.jsonl: give a folder"),
    ({"task": {"name": "text.gguf"}}, "unknown task 'text.gguf'"),
    ({"task": {"name": "arithmatic"}}, "unknown task 'arithmatic': did you mean arithmetic?"),
    ({"task": {"name": "arithmetic", "options": {"digitz": 3}}}, "'digitz': did you mean digits"),
    ({"task": {"name": "rows.jsonl"}}, "rows.jsonl, line 2"),
    ({"task": {"name": "none.jsonl"}}, "none.jsonl"),
    ({"quantization": {"backend": {2: "reference", 4: "ggup"}}}, "unknown backend 'ggup'"),
    ({"quantization": {"backend": "reference"}, "space": {"bits": (7,)}}, "has no 7 bits"),
    ({"quantization": {"backend": "ggup"}}, "unknown backend 'ggup': did you mean gguf?"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "ans\n')
    (tmp_path / "text.gguf").write_text("this is text")
    monkeypatch.setattr(hub, "unavailable_reason", lambda kind, name: "no route")
    monkeypatch.setenv("QRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("fields", "message"), CASES, ids=[message for _, message in CASES])
def test_a_setting_that_cannot_be_used_is_one_line(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        QuantizedLoRAEvaluator({"model": {"name": "tiny"}, **fields})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_cache_that_cannot_be_written_to_is_one_line(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    given: dict[str, Any] = {
        "model": {"name": "tiny"},
        "quantization": {"cache": str(folder / "file" / "bank")},
    }
    evaluator = QuantizedLoRAEvaluator({**given, "space": {"bits": (4,), "ranks": (4,)}})
    with pytest.raises(BadInput, match="cannot write to the cache .*file/bank .*: set QRA_CACHE"):
        evaluator.sensitivities()


def build(task, **finetune):
    return make_evaluator(
        "tiny",
        task,
        space={"bits": (4,), "ranks": (4,)},
        training={"max_length": 40, "batch_size": 8},
        evaluation={"steps": 1, "validation_rows": 64},
        finetune=finetune,
        weights=False,
    )


def test_data_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(quantized_lora, "load_model", lambda *a, **o: pytest.fail("the model was loaded"))
    (tmp_path / "x.csv").write_text("q,a\n1,2\n")
    with pytest.raises(ValueError, match="x.csv, line 2: the fields 'q', 'a'"):
        build(str(tmp_path / "x.csv"))


def test_rows_asked_for_and_had_and_cut_are_counted(tmp_path):
    rows = [{"prompt": "p" * (20 + i) + str(i), "answer": "yes"} for i in range(30)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluator = build(str(tmp_path / "x.jsonl"), steps=2, test_rows=5)
    counts = evaluator.row_counts()
    task = evaluator.task
    assert {name: (count.asked, count.had) for name, count in counts.items()} == {
        "train": (16, 16),
        "validation": (64, 3),
        "test": (5, 3),
    }
    # A byte is a token: prompt, the answer with a space before it, and the end token.
    lengths = [len(e.prompt) + len(e.answer) + 1 for e in task.split("train")[:16]]
    assert counts["train"] == RowCount(16, 16, sum(n > 40 for n in lengths), max(lengths), available=24)
    epochs = build(str(tmp_path / "x.jsonl"), epochs=3)
    assert epochs.row_counts()["train"].asked == len(task.split("train")) == 24


def build_judged(tmp_path, task, **options):
    return make_evaluator(
        "tiny",
        task,
        quantization={"backend": "reference", "cache": str(tmp_path / "bank")},
        space={"bits": (4,), "ranks": (4,), "granularity": "layer"},
        training={"batch_size": 2, "max_length": 64},
        dtype="float32",
        **{"evaluation": {"steps": 2, "validation_rows": 8}, "finetune": {"test_rows": 8}, **options},
    )


def test_of_generated_answers_it_is_the_share_that_is_wrong_and_the_final_tuning_scores_them(tmp_path):
    evaluator = build_judged(
        tmp_path,
        "arithmetic",
        metric="task",
        evaluation={"steps": 2, "validation_rows": 2},
        finetune={"test_rows": 2},
    )
    plan = evaluator.space.uniform(4, 4)
    assert evaluator.evaluate(plan, fidelity=0.5).loss == 1.0  # a random model is never right
    assert evaluator.tune(plan, steps=2).metrics == {"exact_match": 0.0}


def test_functions_of_ones_own_score_long_answers_on_the_rows_asked_for(tmp_path, monkeypatch):
    """An answer of 90 tokens is scored; the limit on generated tokens is that of the wanted answers."""
    asked = set()
    rows = [{"prompt": f"say {i}", "answer": str(i % 10) * 90} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"name": "tiny", "dtype": "float32"},
        "task": {"name": str(tmp_path / "rows.jsonl")},
        "quantization": {"backend": "reference", "cache": str(tmp_path / "bank")},
        "space": {"bits": (4,), "ranks": (4,), "granularity": "layer"},
        "training": {"batch_size": 2},
        "finetune": {"test_rows": 6, "scored_rows": 5, "sample_answers": 0},
        "search": {"metric": "task"},
    }
    evaluator = QuantizedLoRAEvaluator(config, metrics={"long": lambda answer, example: 0.25})

    def answers(model, tokenizer, examples, most, **options):
        asked.add(most)
        return [example.answer[:9] for example in examples]

    monkeypatch.setattr(evaluator.task, "answer_examples", answers)
    tuned = evaluator.tune(evaluator.space.uniform(4, 4), steps=1)
    assert tuned.metrics == {"long": 0.25, "exact_match": 0.0}
    wanted = [example.answer for example in evaluator.task.split("test")[:5]]
    commonest = max(map(wanted.count, wanted)) / 5
    assert tuned.commonest_scores == {"long": 0.25, "exact_match": pytest.approx(commonest)}
    assert tuned.metric_digests == evaluator.metric_digests() and all(tuned.metric_digests.values())
    assert {len(scores) for scores in tuned.row_scores.values()} == {5}
    assert asked == {len(" ") + 90 + ANSWER_MARGIN}
    assert evaluator.task.judged_by == "long" and evaluator.config.task.metrics == ("in-memory:long",)
    other = QuantizedLoRAEvaluator(config, metrics={"long": lambda answer, example: 0.5})
    assert other.describe() != evaluator.describe(), (
        "losses by another function are not to be compared with these"
    )


def test_higher_is_better_unless_a_metric_is_named_a_loss_and_a_users_task_keeps_its_own(tmp_path):
    task = make_task([{"prompt": f"say {i}", "answer": str(i)} for i in range(60)])
    config = {
        "model": {"name": "tiny", "dtype": "float32"},
        "quantization": {"backend": "reference", "cache": str(tmp_path)},
        "space": {"bits": (4,), "ranks": (4,), "granularity": "layer"},
        "training": {"batch_size": 2},
        "evaluation": {"steps": 1, "validation_rows": 2},
        "search": {"metric": "task"},
    }
    for name, loss in (("gloss", 0.75), ("own_loss", 0.25)):
        evaluator = QuantizedLoRAEvaluator(config, task=task, metrics={name: lambda answer, example: 0.25})
        assert evaluator.evaluate(evaluator.space.uniform(4, 4)).loss == pytest.approx(loss)
    assert task.judged_by == "exact_match" and list(task.metrics) == ["exact_match"]


def test_a_task_without_a_measure_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"{i} some words " * 40 for i in range(400)))
    with pytest.raises(ValueError, match="task 'text' has no metric: use --set search.metric=loss"):
        build_judged(tmp_path, {"name": "text", "data": str(tmp_path / "text.txt")}, metric="task")
