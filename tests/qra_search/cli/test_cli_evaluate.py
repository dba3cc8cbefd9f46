"""`qra evaluate`, with a harness and an evaluator that answer at once."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Qra

from qra_eval.harness import Score
from qra_search import Plan, plugins
from qra_search.evaluation.evaluator import EvaluationFailed, ReloadFailed
from qra_search.files import write_json
from qra_search.runs.folder import RunFolder
from qra_search.space.serialization import plan_to_dict


class Harness:
    """Scores by the name of the folder."""

    def __init__(self, tasks: list[str], **options: Any):
        if "odd" in tasks:
            raise ValueError("lm-evaluation-harness has no task 'odd'")
        self.tasks, self.options = tasks, options

    def tuned(self, folder: Path) -> list[Score]:
        assert (folder / "plan.json").is_file() and (folder / "adapter").is_dir()
        value = 0.25 if folder.name.startswith("uniform-") else 0.5
        return [Score(task, "acc", value, 0.01, self.options["limit"] or 100) for task in self.tasks]

    def untuned(self, model: str, *, trust_remote_code: bool) -> list[Score]:
        assert model == "a-model"
        return [Score(task, "acc", 0.125, None, 100) for task in self.tasks]


class Plans(list):  # type: ignore[type-arg]
    """The plans that were tuned, the devices of the evaluators, and what is to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []
        self.fault = ""


@pytest.fixture
def tuned(qra: Qra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plans:
    """A tuned run in `tmp_path / "a"`; gives the plans that are tuned from then on."""
    from qra_eval.evaluators.landscape import build

    load, seen = plugins.load, Plans()

    def tuning(config: Any, *, progress: Any = None) -> Any:
        evaluator: Any = build(config)
        seen.devices.append(config.model.device)

        def tune(plan: Plan, *, folder: Path, **_: Any) -> None:
            seen.append(plan)
            if seen.fault == "cannot be tuned":
                raise EvaluationFailed(seen.fault)
            (folder / "adapter").mkdir(exist_ok=True)
            write_json(folder / "plan.json", {**plan_to_dict(evaluator.space, plan), "model": "a-model"})
            if seen.fault:
                raise ReloadFailed(seen.fault, Score("", "", 0.0, None, 0))  # type: ignore[arg-type]

        evaluator.tune = tune
        return evaluator

    fakes = {"evaluators": tuning, "harnesses": Harness}
    monkeypatch.setattr(plugins, "load", lambda kind, name: fakes.get(kind) or load(kind, name))
    assert qra.search(tmp_path / "a").status == 0
    run = RunFolder(tmp_path / "a")
    run.adapter.mkdir()
    write_json(run.plan_file, {**json.loads(run.plan_file.read_text()), "model": "a-model"})
    return seen


def test_the_tuned_plan_is_scored_and_the_scores_written(qra, tmp_path, tuned):
    done = qra("evaluate", tmp_path / "a", "--tasks", "arc_easy, gsm8k", "--limit", 7)
    assert done.status == 0, done.err
    assert "arc_easy" in done.out and "0.500 ± 0.010" in done.out and "Rows: arc_easy 7, gsm8k 7" in done.out
    data = json.loads((tmp_path / "a" / "evaluate.json").read_text())
    assert data["tasks"] == ["arc_easy", "gsm8k"] and data["limit"] == 7
    assert [row["role"] for row in data["rows"]] == ["found"]
    assert not tuned


def test_models_are_loaded_and_baselines_tuned_on_the_device_that_is_given(qra, tmp_path, tuned, monkeypatch):
    seen = []
    made = Harness.__init__

    def noted(self, tasks, **options):
        seen.append(options["device"])
        made(self, tasks, **options)

    monkeypatch.setattr(Harness, "__init__", noted)
    assert qra("evaluate", tmp_path / "a", "--tasks", "gsm8k").status == 0
    assert qra("evaluate", tmp_path / "a", "--tasks", "gsm8k", "--device", "cuda:1", "--against", "all").status == 0
    assert seen == ["auto", "cuda:1"] and tuned.devices == ["auto", "cuda:1"]


@pytest.mark.parametrize("fault", ["cannot be tuned", "does not load back"])
def test_a_baseline_that_fails_is_left_out_and_said(qra, tmp_path, tuned, fault):
    tuned.fault = fault
    done = qra("evaluate", tmp_path / "a", "--tasks", "gsm8k", "--against", "all")
    assert done.status == 0, done.err
    assert f"is left out: {fault}" in done.err
    assert [row["role"] for row in json.loads((tmp_path / "a" / "evaluate.json").read_text())["rows"]] == [
        "found",
        "untuned",
    ]
    tuned.fault = ""
    assert "uniform" in qra("evaluate", tmp_path / "a", "--tasks", "gsm8k", "--against", "all").out


def test_baselines_are_tuned_once_and_scored_beside_the_model_as_it_was(qra, tmp_path, tuned):
    done = qra("evaluate", tmp_path / "a", "--tasks", "gsm8k", "--against", "all", "--json")
    assert done.status == 0, done.err
    roles = [row["role"] for row in done.json["rows"]]
    assert roles == ["found", *["uniform"] * len(tuned), "untuned"] and len(tuned) > 1
    space = RunFolder(tmp_path / "a").result().space
    for plan, row in zip(tuned, done.json["rows"][1:-1], strict=True):
        assert row["plan"] == plan.to_dict()
        assert row["memory_bytes"] == space.memory_bytes(plan) and row["scores"][0]["value"] == 0.25
    count = len(tuned)
    again = qra("evaluate", tmp_path / "a", "--tasks", "gsm8k", "--against", "all")
    assert again.status == 0 and len(tuned) == count and "the model as it was" in again.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--tasks", "odd"), "no task 'odd'"), (("--tasks", "a", "--against", "some"), "is not one of all, best, none")],
)
def test_what_cannot_be_is_said_in_one_line(qra, tmp_path, tuned, arguments, said):
    done = qra("evaluate", tmp_path / "a", *arguments)
    assert done.status == 2 and said in done.err and "Traceback" not in done.err


def test_a_run_that_was_not_tuned_is_refused(qra, tmp_path):
    qra.search(tmp_path / "a")
    done = qra("evaluate", tmp_path / "a", "--tasks", "gsm8k")
    assert done.status == 2 and "run `qra finetune" in done.err
    assert qra("evaluate", tmp_path / "none", "--tasks", "gsm8k").status == 2


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed here")
def test_without_the_harness_it_is_named(qra, tmp_path):
    qra.search(tmp_path / "a")
    RunFolder(tmp_path / "a").adapter.mkdir()
    done = qra("evaluate", tmp_path / "a", "--tasks", "gsm8k")
    assert done.status == 2 and 'pip install "lm_eval[hf]"' in done.err
