"""Full tuning: how a plan that cannot be tuned fails, and what is kept if its saved form does not load back."""

from __future__ import annotations

import pytest
import torch

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tuning import final
from qra_eval.tuning.saved import ReloadMismatch
from qra_eval.tuning.training import Diverged
from qra_search.evaluation.evaluator import EvaluationFailed
from qra_search.evaluation.protocols import ReloadFailed


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return QuantizedLoRAEvaluator(
        "tiny",
        quantization={"backend": "reference", "cache": str(tmp_path_factory.mktemp("bank"))},
        space={"bits": (2, 4), "ranks": (0, 4), "granularity": "layer"},
        training={"batch_size": 2, "test_rows": 4, "max_length": 64},
    )


def raising(error):
    def act(*args, **options):
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Diverged("training loss is nan at step 3 of 5"), "diverged: training loss is nan at step 3 of 5"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "out of memory: CUDA out of memory. "),
    ],
)
def test_a_plan_that_cannot_be_tuned_fails_with_a_word_for_the_kind_and_the_reason(
    evaluator, monkeypatch, error, reason
):
    monkeypatch.setattr(evaluator.workbench, "train", raising(error))
    with pytest.raises(EvaluationFailed) as failed:
        evaluator.tune(evaluator.space.uniform(4, 4), steps=1)
    assert str(failed.value).startswith(reason) and "\n" not in str(failed.value)


@pytest.mark.parametrize(
    "error", [ReloadMismatch("logits differ by up to 0.5"), torch.cuda.OutOfMemoryError("no room\nfor a second model")]
)
def test_whatever_goes_wrong_in_loading_it_back_what_was_tuned_is_saved_and_comes_with_the_error(
    evaluator, monkeypatch, tmp_path, error
):
    plan = evaluator.space.uniform(4, 4)
    loss = evaluator.tune(plan, steps=1).test_loss
    monkeypatch.setattr(final, "check_reload", raising(error))
    with pytest.raises(ReloadFailed, match=" ".join(str(error).split())) as failed:
        evaluator.tune(plan, steps=1, folder=tmp_path)
    tuned = failed.value.tuned
    assert (tuned.plan, tuned.test_loss, tuned.folder, tuned.reload_difference) == (plan, loss, str(tmp_path), None)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
