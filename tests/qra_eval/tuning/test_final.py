"""Full tuning: how a plan that cannot be tuned fails, and what is kept if its saved form does not load back."""

from __future__ import annotations

import math

import pytest
import torch
from cli_runner import Qra
from evaluators import make_evaluator

from qra_eval.models.tiny import tiny_model
from qra_eval.quantized.bank import tensor_bytes
from qra_eval.tuning import final
from qra_eval.tuning.saved import ReloadMismatch
from qra_eval.tuning.training import Diverged
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import EvaluationFailed, ReloadFailed
from qra_search.runs.folder import find_runs
from qra_search.runs.tuned import CHECKPOINTS


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    return make_evaluator(
        "tiny",
        quantization={"backend": "reference", "cache": str(tmp_path_factory.mktemp("bank"))},
        space={"bits": (2, 4), "ranks": (0, 4), "granularity": "layer"},
        training={"batch_size": 2, "max_length": 64},
        finetune={"test_rows": 4, "sample_answers": 3},
    )


def test_a_plan_without_any_adapter_is_refused_before_it_is_tuned(evaluator, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluator.tuner, "train", raising(AssertionError("it was tuned")))
    with pytest.raises(BadInput, match="rank 0 everywhere, so there is no adapter to tune and save"):
        evaluator.tune(evaluator.space.uniform(4, 0), folder=tmp_path)


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
    monkeypatch.setattr(evaluator.tuner, "train", raising(error))
    with pytest.raises(EvaluationFailed) as failed:
        evaluator.tune(evaluator.space.uniform(4, 4), steps=1)
    assert str(failed.value).startswith(reason) and "\n" not in str(failed.value)


def test_a_tuning_whose_last_step_ends_in_no_number_has_diverged_and_saves_nothing(evaluator, monkeypatch, tmp_path):
    monkeypatch.setattr(final, "_row_losses", lambda *_: ([math.nan], [3]))
    with pytest.raises(EvaluationFailed, match="diverged: test loss is nan after step 1 of 1"):
        evaluator.tune(evaluator.space.uniform(4, 4), steps=1, folder=tmp_path)
    assert not (tmp_path / "adapter").exists()


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
    assert (tuned.plan, tuned.test_loss) == (plan, loss)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_tuning_cut_off_after_its_last_step_is_measured_and_saved_without_training_again(
    evaluator, monkeypatch, tmp_path
):
    plan, heard = evaluator.space.uniform(4, 4), []
    options = {"steps": 3, "kept": tmp_path / "kept", "figures": lambda step, told: heard.append(step)}
    whole = evaluator.tune(plan, steps=3, folder=tmp_path / "whole")
    monkeypatch.setattr(final, "row_losses", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluator.tune(plan, **options)
    monkeypatch.undo()
    resumed = evaluator.tune(plan, folder=tmp_path / "run", **options)
    assert heard == [1, 2, 3] and len(list((tmp_path / "kept").glob(CHECKPOINTS))) == 1
    assert resumed.test_loss == whole.test_loss
    file = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_saved_plan_comes_with_its_loss_by_row_and_answers_from_before_and_after(evaluator, tmp_path):
    tuned = evaluator.tune(evaluator.space.uniform(4, 4), steps=1, folder=tmp_path)
    assert len(tuned.row_nats) == len(tuned.row_tokens) == 4
    assert sum(tuned.row_nats) / sum(tuned.row_tokens) == pytest.approx(tuned.test_loss)
    assert len(tuned.samples) == 3
    asked = evaluator.task.split("test")[0]
    assert tuned.samples[0].keys() == {"prompt", "wanted", "before", "after"}
    assert (tuned.samples[0]["prompt"], tuned.samples[0]["wanted"]) == (asked.prompt, asked.answer)


def test_what_is_tuned_from_python_is_a_run_that_the_commands_take(evaluator, tmp_path, capsys):
    plan, folder = evaluator.space.uniform(2, 4), tmp_path / "mine"
    evaluator.tune(plan, steps=1, folder=folder)
    qra = Qra(capsys)
    shown = qra("show", folder)
    assert shown.status == 0 and "uniform 2 bits, rank 4" in shown.out
    assert qra("report", folder).status == 0 and (folder / "report.html").is_file()
    again = qra("finetune", folder, "--steps", 1, "--against", "none", "--with-16-bit", "--json").json
    roles = {entry["role"]: entry for entry in again["tuned"]}
    assert roles.keys() == {"found", "untuned", "16-bit"} and roles["found"]["plan"] == plan.to_dict()
    assert all(e["metrics"].keys() == {"exact_match"} and e["scored"] == 4 for e in roles.values())
    taken = tensor_bytes(tiny_model().model)
    assert roles["untuned"]["memory_bytes"] == taken < roles["16-bit"]["memory_bytes"]
    evaluator.tune(plan, steps=1, folder=folder / "within-1MiB")  # of that run, and none by itself
    assert [run.path for run in find_runs(tmp_path)] == [folder]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_scales_that_are_trained_along_are_resumed_as_well(evaluator, monkeypatch, tmp_path):
    bench = evaluator.tuner
    for holder, name, changed in (
        (evaluator.quantized, "settings", {"scales": True}),
        (bench, "evaluation", {"validation_rows": 4}),
        (bench, "finetune", {"checkpoint_every": 2, "evaluate_every": 2, "scored_rows": 0}),
    ):
        monkeypatch.setattr(holder, name, getattr(holder, name).model_copy(update=changed))
    plan = evaluator.space.uniform(2, 4)

    def kill(step, told):
        if step == 3:
            raise Killed

    evaluator.tune(plan, steps=4, folder=tmp_path / "whole", kept=tmp_path / "kept-whole")
    with pytest.raises(Killed):
        evaluator.tune(plan, steps=4, kept=tmp_path / "kept", figures=kill)
    evaluator.tune(plan, steps=4, folder=tmp_path / "run", kept=tmp_path / "kept")
    for file in ("adapter/adapter_model.safetensors", "quantized.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
