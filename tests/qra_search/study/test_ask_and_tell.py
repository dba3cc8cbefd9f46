"""`Study.ask` and `Study.tell`: a search whose plans are evaluated elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qra_search import BadInput, EvaluationFailed, Study
from qra_search.testing.scenarios import ToyEvaluator


def evaluate_all(study: Study, evaluator: ToyEvaluator, count: int | None = None) -> int:
    """Ask and tell until nothing is left, or so many times; how many there were."""
    done = 0
    while (count is None or done < count) and (proposal := study.ask()) is not None:
        study.tell(
            proposal, evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)
        )
        done += 1
    return done


def test_asking_and_telling_gives_the_trials_of_a_run(tmp_path: Path) -> None:
    options = {"evaluations": 12, "memory_budget": "uniform4r8", "seed": 3}
    whole = Study(ToyEvaluator(), **options)  # type: ignore[arg-type]
    whole.run()
    study = Study(ToyEvaluator(), log=tmp_path / "trials.jsonl", **options)  # type: ignore[arg-type]
    assert evaluate_all(study, ToyEvaluator()) == len(whole.log) > 3
    assert [(t.proposal, t.loss) for t in study.log] == [(t.proposal, t.loss) for t in whole.log]
    assert study.result().best() == whole.result().best()


def test_a_proposal_that_was_not_told_is_asked_again_by_the_next_process(tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    first = Study(ToyEvaluator(), log=log, evaluations=12)
    evaluate_all(first, ToyEvaluator(), 3)
    open_one = first.ask()
    first.close()
    second = Study(ToyEvaluator(), log=log, evaluations=12)
    assert second.ask() == open_one


def test_a_study_that_was_closed_asks_on_from_what_others_have_told(tmp_path: Path) -> None:
    first = Study(ToyEvaluator(), log=tmp_path / "trials.jsonl", evaluations=12)
    first.close()
    second = Study(ToyEvaluator(), log=tmp_path / "trials.jsonl", evaluations=12)
    assert evaluate_all(second, ToyEvaluator(), 3) == 3
    second.close()
    next_one = first.ask()
    assert next_one is not None and next_one.plan not in {trial.plan for trial in second.log}


def test_two_may_be_open_and_are_told_in_any_order() -> None:
    study, evaluator = Study(ToyEvaluator(), evaluations=12), ToyEvaluator()
    one, two = study.ask(), study.ask()
    assert one is not None and two is not None and one.key != two.key
    for proposal in (two, one):
        study.tell(proposal, evaluator.evaluate(proposal.plan, seed=proposal.seed))
    assert [t.status for t in study.log] == ["done", "done"]


def test_a_failure_and_an_evaluation_that_cannot_be_true_are_recorded_as_failed() -> None:
    study, evaluator = Study(ToyEvaluator(), evaluations=12), ToyEvaluator()
    first, second = study.ask(), study.ask()
    assert first is not None and second is not None
    trial = study.tell(first, EvaluationFailed("out of memory: 3 GiB"))
    assert trial.status == "failed" and "out of memory: 3 GiB" in trial.reason
    evaluation = evaluator.evaluate(second.plan, seed=second.seed)
    trial = study.tell(second, replace(evaluation, memory_bytes=evaluation.memory_bytes + 1))
    assert trial.status == "failed" and "bytes" in trial.reason
    with pytest.raises(BadInput, match="unknown or finished proposal"):
        study.tell(second, evaluation)
