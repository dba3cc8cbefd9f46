"""Full tuning: how a plan that cannot be tuned fails, and what is saved of one that can."""

from __future__ import annotations

import math

import pytest
import torch
from evaluators import make_evaluator, measure_reload

from qra_eval.models.tiny import make_tiny_model
from qra_eval.quantized.bank import count_tensor_bytes
from qra_eval.tuning import final
from qra_eval.tuning.training import Diverged
from qra_search.app.tuning_folder import CHECKPOINT_FILE
from qra_search.errors import EvaluationFailed


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return make_evaluator(
        "tiny",
        quantization={"backend": "reference", "cache": str(tmp_path_factory.mktemp("bank"))},
        space={"bits": (2, 4), "ranks": (0, 4), "granularity": "layer"},
        training={"batch_size": 2, "max_length": 64},
        finetune={"test_rows": 4, "sample_answers": 3},
    )


def raising(error):
    def act(*args, **options):
        raise error

    return act


def test_what_diverges_has_a_record_that_says_so_and_what_runs_out_of_memory_has_none(
    evaluator, monkeypatch, tmp_path
):
    plan = evaluator.space.uniform(4, 4)
    with monkeypatch.context() as last:
        last.setattr(final, "_measure_test_rows", lambda *_: ([math.nan], [3]))
        record = evaluator.tune(plan, steps=1, folder=tmp_path)
    assert record.failed == "diverged: the test loss is nan after step 1: lower the learning rate"
    assert not (tmp_path / "adapter").exists()
    monkeypatch.setattr(evaluator.tuner, "train", raising(Diverged("training loss is nan at step 3 of 5")))
    record = evaluator.tune(plan, steps=1)
    assert record.failed == "diverged: training loss is nan at step 3 of 5" and record.test_loss == math.inf
    memory = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")
    monkeypatch.setattr(evaluator.tuner, "train", raising(memory))
    with pytest.raises(EvaluationFailed, match=r"^out of memory \(CUDA out of memory. Tried\): lower "):
        evaluator.tune(plan, steps=1)


def test_a_tuning_cut_off_after_its_last_step_is_measured_and_saved_without_training_again(
    evaluator, monkeypatch, tmp_path
):
    plan, heard = evaluator.space.uniform(4, 4), []
    options = {"steps": 3, "folder": tmp_path / "run", "on_step": lambda step, figures: heard.append(step)}
    whole = evaluator.tune(plan, steps=3, folder=tmp_path / "whole")
    with monkeypatch.context() as cut:
        cut.setattr(final, "measure_row_losses", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluator.tune(plan, **options)
    resumed = evaluator.tune(plan, **options)
    assert heard == [1, 2, 3] and (tmp_path / "run" / CHECKPOINT_FILE).is_file()
    assert resumed.row_nats == whole.row_nats
    file = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_record_has_the_losses_and_answers_from_before_and_after(evaluator, tmp_path):
    plan, tuner = evaluator.space.uniform(4, 4), evaluator.tuner
    record = evaluator.tune(plan, steps=1)  # its model stays in place
    measured = tuner.measure_loss("validation", tuner.evaluation.validation_rows)
    assert record.validation_loss == measured != record.test_loss
    tuned = evaluator.tune(plan, steps=1, folder=tmp_path)
    assert len(tuned.row_nats) == len(tuned.row_tokens) == 4
    assert sum(tuned.row_nats) / sum(tuned.row_tokens) == pytest.approx(tuned.test_loss)
    asked = evaluator.task.split("test")[0]
    assert [*tuned.samples[0]] == ["prompt", "wanted", "before", "after"]
    assert (tuned.samples[0]["prompt"], tuned.samples[0]["wanted"]) == (asked.prompt, asked.answer)
    assert len({sample["wanted"] for sample in tuned.samples}) == len(tuned.samples) == 3


def test_16_bit_lora_and_the_untuned_model_are_records_too(evaluator, tmp_path):
    sixteen = evaluator.space.unquantized.uniform(16, 4)
    record = evaluator.tune(sixteen, steps=1, folder=tmp_path)
    assert measure_reload(evaluator, sixteen, tmp_path) == 0.0
    untuned = evaluator.measure_untuned()
    assert untuned.memory_bytes == count_tensor_bytes(make_tiny_model().model) < record.memory_bytes
    assert untuned.is_untuned
    assert record.metrics.keys() == {"exact_match"} and len(untuned.row_nats) == len(record.row_nats) == 4


def test_answers_that_are_not_scored_are_said_to_be_so(evaluator, monkeypatch, caplog):
    monkeypatch.setattr(evaluator.quantized_model, "keeps_dequantized", False)
    untuned = evaluator.measure_untuned()
    assert untuned.unscored in caplog.text and "do not fit into memory" in untuned.unscored
    assert untuned.row_scores == {} and len(untuned.row_nats) == 4


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_scales_that_are_trained_along_are_resumed_as_well(evaluator, monkeypatch, tmp_path):
    bench = evaluator.tuner
    for holder, name, changed in (
        (evaluator.quantized_model, "settings", {"scales": True}),
        (bench, "evaluation", {"validation_rows": 4}),
        (bench, "finetune", {"checkpoint_minutes": 0, "evaluate_every": 2, "scored_rows": 0}),
    ):
        monkeypatch.setattr(holder, name, getattr(holder, name).model_copy(update=changed))
    plan = evaluator.space.uniform(2, 4)

    def kill(step, figures):
        if step == 3:
            raise Killed

    evaluator.tune(plan, steps=4, folder=tmp_path / "whole")
    with pytest.raises(Killed):
        evaluator.tune(plan, steps=4, folder=tmp_path / "run", on_step=kill)
    evaluator.tune(plan, steps=4, folder=tmp_path / "run")
    for file in ("adapter/adapter_model.safetensors", "quantized.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
