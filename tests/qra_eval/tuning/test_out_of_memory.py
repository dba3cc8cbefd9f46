"""Running out of memory: one evaluation, or a tuning, fails, and holds nothing."""

from __future__ import annotations

import weakref

import pytest
import torch
from evaluators import make_evaluator

from qra_eval.quantized import adapters
from qra_eval.tuning import training
from qra_search.errors import EvaluationFailed

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
