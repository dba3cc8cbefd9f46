"""Running out of memory: a run goes on with less, its losses the same; or one evaluation fails, and holds nothing."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch
from evaluators import make_evaluator

from qra_eval.quantized import adapters
from qra_eval.tuning import training
from qra_search.errors import EvaluationFailed

FULL = "CUDA out of memory. Tried"


@pytest.fixture
def evaluator(tmp_path_factory):
    cache = str(tmp_path_factory.getbasetemp() / "bank")
    return make_evaluator(
        "tiny",
        quantization={"backend": "reference", "cache": cache, "embeddings": 16},
        space={"bits": (2, 4), "ranks": (4,), "granularity": "layer"},
        training={"batch_size": 4, "max_length": 64},
        evaluation={"steps": 2, "validation_rows": 2},
        finetune={"steps": 2, "test_rows": 2},
    )


def running_out(monkeypatch, *, rows):
    """A card that holds the graph of so many rows; the losses of steps that it did not hold."""
    graphs, whole = [], training.compute_batch_loss

    def compute_batch_loss(model, head, batch, *args):
        loss = whole(model, head, batch, *args)
        if len(batch.input_ids) > rows:
            graphs.append(weakref.ref(loss))
            raise torch.OutOfMemoryError(f"{FULL}\nto allocate")
        return loss

    monkeypatch.setattr(training, "compute_batch_loss", compute_batch_loss)
    return graphs


@pytest.mark.parametrize("act", ["evaluate", "tune"])
def test_nothing_of_a_step_that_ran_out_of_memory_is_held(evaluator, monkeypatch, act):
    plan = evaluator.space.uniform(4, 4)
    graphs = running_out(monkeypatch, rows=0)
    with pytest.raises(EvaluationFailed) as failed:
        getattr(evaluator, act)(plan)
    assert str(failed.value) == f"out of memory: {FULL}"
    # As it was; without weights kept ready; of 2 rows; of 1; with activations made again.
    assert len(graphs) == 5 and not any(graph() for graph in graphs), "the error keeps the step's graph"
    assert not adapters.get_named_factors(evaluator.tuner.switcher.wrapped)
    assert not evaluator.tuner.model.training and evaluator.tuner.checkpointing


def test_answers_are_scored_a_few_at_a_time_as_far_as_memory_goes(evaluator, monkeypatch):
    sizes, score_rows = [], evaluator.task.score_rows

    def run_out(*args, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > least:
            raise torch.OutOfMemoryError(FULL)
        return score_rows(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(evaluator.task, "score_rows", run_out)
    least = 2
    assert set(evaluator.tuner.score_rows("test", 2)) == {"exact_match"} and sizes == [16, 8, 4, 2]
    least = 0
    with pytest.raises(torch.OutOfMemoryError):
        evaluator.tuner.score_rows("test", 2)
    assert sizes[-1] == 1


def test_a_run_that_ran_out_of_memory_goes_on_with_fewer_rows_and_the_same_losses(
    evaluator, monkeypatch, caplog
):
    two, four = (evaluator.space.uniform(bits, 4) for bits in (2, 4))
    evaluator.tuner.switcher.disable_dequantized_cache()  # as it will have to: with weights as they are stored
    before = [evaluator.evaluate(plan).loss for plan in (two, four)]
    graphs = running_out(monkeypatch, rows=2)
    with caplog.at_level(logging.WARNING):
        after = [evaluator.evaluate(plan).loss for plan in (two, four)]
    assert after == pytest.approx(before, rel=2e-4) and evaluator.tuner.device_batch_size == 2
    assert len(graphs) == 1 and len(caplog.records) == 1, "said once, and remembered"
