"""A search by the task's own measure: an evaluation's loss is that, with the loss of the answers beside it."""

from __future__ import annotations

import json

import pytest
from evaluators import make_evaluator

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks import make_task
from qra_eval.tasks.base import ANSWER_MARGIN


def build(tmp_path, task, **options):
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
    evaluator = build(
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
    with pytest.raises(ValueError, match="the task 'text' has no measure of its own: take 'loss'"):
        build(tmp_path, {"name": "text", "data": str(tmp_path / "text.txt")}, metric="task")
