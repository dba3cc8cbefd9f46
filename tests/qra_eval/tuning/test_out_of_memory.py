"""Running out of memory fails one evaluation, and nothing of the failed step stays where the next needs room."""

from __future__ import annotations

import weakref

import pytest
import torch

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized import adapters
from qra_eval.tuning import training
from qra_search.evaluation.evaluator import EvaluationFailed


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return QuantizedLoRAEvaluator(
        "tiny",
        quantization={"backend": "reference", "cache": str(tmp_path_factory.mktemp("bank")), "embeddings": 16},
        space={"bits": (2, 4), "ranks": (4,), "granularity": "layer"},
        training={"batch_size": 2, "max_length": 64},
        evaluation={"steps": 2, "validation_rows": 2},
        finetune={"steps": 2, "test_rows": 2},
    )


@pytest.mark.parametrize("act", ["evaluate", "tune"])
def test_nothing_of_a_step_that_ran_out_of_memory_is_held(evaluator, monkeypatch, act):
    plan = evaluator.space.uniform(4, 4)
    before = evaluator.evaluate(plan).loss
    graph, whole = [], training.batch_loss

    def fails(*args, **options):
        loss = whole(*args, **options)
        graph.append(weakref.ref(loss))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    with monkeypatch.context() as patched:
        patched.setattr(training, "batch_loss", fails)
        with pytest.raises(EvaluationFailed) as failed:
            getattr(evaluator, act)(plan)
    assert str(failed.value) == "out of memory: CUDA out of memory. Tried"
    assert len(graph) == 1 and graph[0]() is None, "the error keeps the graph of the failed step"
    assert not evaluator.quantized.bank._weights and not adapters.trainable(evaluator.tuner.switcher.wrapped)
    assert not evaluator.tuner.model.training
    assert evaluator.evaluate(plan).loss == before
