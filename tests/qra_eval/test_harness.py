"""lm-evaluation-harness on local files, without a network; skipped where it is not installed."""

from __future__ import annotations

import json

import pytest
import torch
from cli_runner import Qra

from qra_eval.harness import LOCAL, Harness
from qra_eval.models.tiny import tiny_model
from qra_eval.tasks import make_task
from qra_eval.tasks.scoring import score_choices

pytest.importorskip("lm_eval", reason="lm_eval is not installed (an optional extra)")


def rows(task: str, first: int) -> list[dict]:
    if task == "gsm8k":
        made = ((f"What is {n} + 1?", f"It is {n + 1}.\n#### {n + 1}") for n in range(first, first + 8))
        return [{"question": question, "answer": answer} for question, answer in made]
    numbers = range(first, first + 8)
    choices = ((f"What is {n} + {n + 2}?", [str(2 * n + 2), "red", str(n * n + 9), "no"]) for n in numbers)
    return [{"question": question, "choices": texts, "answer": 0} for question, texts in choices]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task in LOCAL:
        for split, first in (("train", 100), ("test", 1)):
            lines = "".join(json.dumps(row) + "\n" for row in rows(task, first))
            (folder / f"{task}_{split}.jsonl").write_text(lines)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def test_every_local_task_is_scored_and_agrees_with_the_projects_own(data):
    loaded = tiny_model(dtype=torch.float32)
    scores = Harness(tuple(LOCAL), data=data, shots=0).score(loaded.model, loaded.tokenizer)
    assert {score.task for score in scores} == set(LOCAL) and all(score.rows == 8 for score in scores)
    for name in ("arc_easy", "arc_challenge", "openbookqa"):
        examples = make_task(name, data=str(data)).split("test")
        ours = score_choices(loaded.model, loaded.tokenizer, examples)
        acc = next(score for score in scores if (score.task, score.metric) == (name, "acc"))
        assert acc.value == pytest.approx(ours.metrics()["accuracy"]) and acc.stderr is not None


def test_shots_come_from_the_training_file(data):
    from lm_eval.tasks import TaskManager

    harness = Harness(["gsm8k"], data=data)
    (task,) = TaskManager().load(harness._specs)["tasks"].values()
    assert [doc["question"] for doc in task.fewshot_docs()][:2] == [row["question"] for row in rows("gsm8k", 100)[:2]]


@pytest.mark.parametrize(
    ("tasks", "said"), [(["arc_eazy"], "did you mean arc_easy"), (["piqa"], "no local form"), ([], "no task is named")]
)
def test_a_task_that_cannot_be_is_refused(tasks, said, data):
    with pytest.raises(ValueError, match=said):
        Harness(tasks, data=data)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no arc_easy_test.jsonl"):
        Harness(["arc_easy"], data=tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        Harness(["arc_easy"], data=tmp_path / "none")


def test_a_run_is_scored_from_the_command_line_beside_its_baseline(data, tmp_path, capsys):
    qra, run = Qra(capsys), tmp_path / "run"
    small = {
        "evaluation.steps": 2, "training.batch_size": 2, "evaluation.validation_rows": 4, "finetune.test_rows": 4,
        "finetune.steps": 2, "quantization.cache": str(tmp_path / "bank"),
    }  # fmt: skip
    sets = [word for field, value in small.items() for word in ("--set", f"{field}={value}")]
    options = ("--backend", "reference", "--bits", "3,4", "--ranks", "4", "--strategy", "uniform", "-n", 12)
    where = ("--model", "tiny", "--task", "arithmetic", "--memory", "uniform4r4", "--out", run)
    done = qra("search", *where, *options, *sets)
    assert done.status == 0, done.err
    assert qra("finetune", run, "--against", "none").status == 0
    command = ("evaluate", run, "--tasks", "arc_easy,gsm8k", "--data", data, "--limit", 2, "--against", "all")
    done = qra(*command, "--json")
    assert done.status == 0, done.err
    scored = done.json["rows"]
    assert [row["role"] for row in scored] == ["found", "uniform", "untuned"]
    assert all([s["task"] for s in row["scores"]] == ["arc_easy", "arc_easy", "gsm8k", "gsm8k"] for row in scored)
