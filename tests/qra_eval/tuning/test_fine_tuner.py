"""The tuner: a plan in place is trained and measured, and what a training sees follows from settings and seed."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from evaluators import make_evaluator

from qra_eval.quantized import adapters
from qra_eval.tasks import make_task
from qra_eval.tasks.base import Rows
from qra_eval.tuning import training
from qra_eval.tuning.fine_tuner import TRIAL_ROWS
from qra_search.app.evaluator import RateTrial
from qra_search.errors import EvaluationFailed
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


STEPS = 10


def test_a_trial_gives_a_loss_and_changes_nothing_of_the_tuning():
    evaluator = make_evaluator(
        training={"batch_size": 2},
        evaluation={"validation_rows": TRIAL_ROWS},
        finetune={"steps": STEPS, "test_rows": 8, "scored_rows": 0, "sample_answers": 0},
        space={"bits": [16], "ranks": [8], "granularity": "layer"},
        quantization={"embeddings": 16},
        dtype="float32",
    )
    plan = evaluator.space.uniform(16, 8)
    slow, good = (evaluator.try_rate(plan, rate, STEPS) for rate in (1e-6, 1e-2))
    assert good.loss < slow.loss and good.made == STEPS and len(good.curve) == 10
    ended = evaluator.try_rate(plan, 1e-6, STEPS, beside=RateTrial(1e-2, STEPS, STEPS, 1.0, (0.1,) * 10))
    assert ended.made == STEPS // 2 and len(ended.curve) == 5
    assert math.isclose(ended.loss, ended.curve[-1] / 0.1), "as far behind at the end as at its middle"
    assert evaluator.try_rate(plan, 1e-2, STEPS, beside=slow) == good
    assert len(evaluator.try_rate(plan, 1e-2, 4).curve) == 4, "a part has one step at least"
    diverged = evaluator.try_rate(plan, 1e30, STEPS)
    assert math.isinf(diverged.loss) and diverged.made < STEPS
    assert evaluator.finetune_steps() == STEPS and evaluator.describe()["training"]["learning_rate"] == "auto"
    evaluator.set_learning_rate(1e-2)
    assert math.isclose(evaluator.tune(plan).validation_loss, good.loss, rel_tol=1e-6)


FULL = "CUDA out of memory. Tried"


@pytest.mark.parametrize("act", ["evaluate", "tune"])
def test_nothing_of_a_step_that_ran_out_of_memory_is_held(tmp_path, monkeypatch, act):
    evaluator = make_evaluator(
        "tiny",
        quantization={"backend": "reference", "cache": str(tmp_path), "embeddings": 16},
        space={"bits": (2, 4), "ranks": (4,), "granularity": "layer"},
        training={"batch_size": 4, "max_length": 64},
        evaluation={"steps": 2, "validation_rows": 2},
        finetune={"steps": 2, "test_rows": 2},
    )
    graphs, whole = [], training.compute_batch_loss

    def run_out(*args):
        graphs.append(weakref.ref(whole(*args)))
        raise torch.OutOfMemoryError(f"{FULL}\nto allocate")

    monkeypatch.setattr(training, "compute_batch_loss", run_out)
    with pytest.raises(EvaluationFailed) as failed:
        getattr(evaluator, act)(evaluator.space.uniform(4, 4))
    assert str(failed.value).startswith(f"out of memory ({FULL}): lower training.batch_size")
    assert len(graphs) == 1 and not graphs[0](), "the error keeps the step's graph"
    assert not adapters.get_named_factors(evaluator.tuner.switcher.wrapped)
    assert not evaluator.tuner.model.training
