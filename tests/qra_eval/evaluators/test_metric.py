"""A search by the task's own measure: an evaluation's loss is that, with the loss of the answers beside it."""

from __future__ import annotations

import json

import pytest
from evaluators import make_evaluator

from qra_eval.tasks.scoring import score_choices


def build(tmp_path, task, **options):
    return make_evaluator(
        "tiny", task, quantization={"backend": "reference", "cache": str(tmp_path / "bank")},
        space={"bits": (4,), "ranks": (4,), "granularity": "layer"}, training={"batch_size": 2, "max_length": 64},
        dtype="float32", **{"evaluation": {"steps": 2, "validation_rows": 8}, "finetune": {"test_rows": 8}, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    for split, count in (("train", 40), ("test", 12)):
        rows = [
            {"question": f"{split} {i} + 1?", "choices": [str(i), str(i + 1), "none"], "answer": 1}
            for i in range(count)
        ]
        (folder / f"arc_easy_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_of_multiple_choice_it_is_the_log_probability_among_the_choices(tmp_path, questions):
    task = {"name": "arc_easy", "data": str(questions)}
    by_loss, by_task = build(tmp_path, task), build(tmp_path, task, metric="task")
    plan = by_loss.space.uniform(4, 4)
    usual, own = by_loss.evaluate(plan), by_task.evaluate(plan)
    assert own.metrics["loss"] == usual.loss != own.loss and "loss" not in usual.metrics
    examples = by_loss.task.split("validation")[:8]
    scores = score_choices(by_loss.tuner.model, by_loss.tuner.tokenizer, examples)
    assert own.loss == pytest.approx(scores.choice_loss, rel=1e-5)
    assert by_task.describe() == {**by_loss.describe(), "metric": "task"}


def test_of_generated_answers_it_is_the_share_that_is_wrong_and_the_final_tuning_scores_them(tmp_path):
    evaluator = build(
        tmp_path, "arithmetic", metric="task", evaluation={"steps": 2, "validation_rows": 2}, finetune={"test_rows": 2}
    )
    plan = evaluator.space.uniform(4, 4)
    assert evaluator.evaluate(plan, fidelity=0.5).loss == 1.0  # a random model is never right
    tuned = evaluator.tune(plan, steps=1)
    assert tuned.metrics == {"exact_match": 0.0} and tuned.scored == 2


def test_a_task_without_a_measure_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join("some words " * 40 for _ in range(40)))
    with pytest.raises(ValueError, match="the task 'text' has no measure of its own: take 'loss'"):
        build(tmp_path, {"name": "text", "data": str(tmp_path / "text.txt")}, metric="task")
