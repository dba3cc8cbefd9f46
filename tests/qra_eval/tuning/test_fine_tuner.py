"""The tuner: a plan in place is trained and measured, and what a training sees follows from settings and seed."""

from __future__ import annotations

import pytest
from evaluators import make_evaluator

from qra_eval.tasks import make_task
from qra_eval.tasks.base import Rows
from qra_search.sections import FinetuneConfig


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return make_evaluator(
        "tiny",
        quantization={"backend": "reference", "cache": str(tmp_path_factory.mktemp("bank"))},
        space={"bits": (2, 4), "ranks": (0, 4), "granularity": "layer"},
        training={"batch_size": 2, "max_length": 64},
        evaluation={"steps": 3, "validation_rows": 6},
        dtype="float32",
    )


def test_its_parts_give_what_an_evaluation_gives_and_its_tokens_are_three_of_every_trained_one(evaluator):
    tuner, plan = evaluator.tuner, evaluator.space.uniform(4, 4)
    whole = evaluator.evaluate(plan, seed=5)
    tuner.switcher.put_plan(plan, 5)
    trained = tuner.train(3, 5)
    assert trained.loss == whole.metrics["train_loss"] and tuner.measure_loss("validation", 6) == whole.loss
    tokens = sum(batch.tokens for batch in tuner.get_batches(3, 0))
    assert tuner.trained_rows == 6
    assert tuner.count_evaluation_tokens() == 3 * tokens + sum(map(len, tuner.rows("validation", 6)))


def test_it_says_what_losses_follow_from(evaluator):
    told = evaluator.tuner.describe()
    assert told == evaluator.describe()
    assert (told["model"], told["task"], told["granularity"]) == ("tiny", "arithmetic", "layer")
    evaluator.tuner.evaluation = evaluator.tuner.evaluation.model_copy(update={"validation_rows": 5})
    assert evaluator.describe()["rows"] != told["rows"]


def test_every_seed_of_a_full_tuning_draws_rows_and_batches_of_its_own_but_the_first(evaluator):
    bench = evaluator.tuner

    def rows_in(seed, steps=20):
        batches = bench.get_final_batches(steps, seed)
        return [[tuple(ids[ids != 0].tolist()) for ids in batch.input_ids] for batch in batches]

    def flat(batches):
        return {row for batch in batches for row in batch}

    assert rows_in(0) == [[tuple(i[i != 0].tolist()) for i in b.input_ids] for b in bench.get_batches(20, 0)]
    assert rows_in(1) == rows_in(1) and len(flat(rows_in(1))) == 40
    assert len(flat(rows_in(1)) & flat(rows_in(2))) < 5 and len(flat(rows_in(0)) & flat(rows_in(2))) < 5


def test_epochs_are_passes_over_all_rows_to_tune_on(evaluator, monkeypatch):
    """Each row once in an epoch, though batches do not come out even."""
    tuner, settings = evaluator.tuner, evaluator.quantized_model.settings
    monkeypatch.setattr(tuner, "finetune", FinetuneConfig(steps=33))
    assert tuner.finetune_steps == 33
    with monkeypatch.context() as accumulated:
        twice = settings.model_copy(update={"accumulation": 2})
        accumulated.setattr(evaluator.quantized_model, "settings", twice)
        accumulated.setattr(tuner, "finetune", FinetuneConfig(epochs=0.5))
        assert tuner.finetune_steps == len(tuner.rows.task.split("train")) // 2 // 4
    task = make_task([{"prompt": f"{i}", "answer": "x"} for i in range(11)])
    nine = Rows(task, "nine", tuner.tokenizer, 64)
    monkeypatch.setattr(tuner, "rows", nine)
    monkeypatch.setattr(tuner, "finetune", FinetuneConfig(epochs=3.0))
    batches = tuner.get_final_batches(tuner.finetune_steps, 1)
    assert len(batches) == 15 and sum(len(batch.input_ids) for batch in batches) == 27
    monkeypatch.setattr(tuner, "finetune", FinetuneConfig(epochs=1 + 2 / 9))
    assert tuner.finetune_steps == 6, "what floats add to a part is no batch"
