"""The folder of a run: what may be begun in it, and what is read back."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from qra_search import BadInput, Study
from qra_search.app.config import RunConfig, make_config
from qra_search.app.folder import NoRun, RunFolder
from qra_search.app.run import Run
from qra_search.files import write_json
from qra_search.space.serialization import plan_to_dict
from qra_search.strategies import Strategy, make_strategy
from qra_search.study.result import SearchResult
from qra_search.testing.scenarios import ToyEvaluator, make_toy_space


def config(granularity: str = "auto", **search: object) -> RunConfig:
    space = {} if granularity == "auto" else {"space": {"granularity": granularity}}
    return make_config({"search": {"strategy": "random", "evaluations": 8, **search}, **space})


def searched(
    path: Path, evaluations: float = 8, settings: RunConfig | None = None
) -> tuple[RunFolder, SearchResult]:
    """A run of a toy, made as the command makes it."""
    folder = RunFolder(path)
    settings = settings or config(evaluations=evaluations)
    with folder.begin(settings, resume=folder.has_run):
        folder.write_config(settings)
    study = Study(
        ToyEvaluator(make_toy_space()), strategy="random", evaluations=evaluations, log=folder.log_file
    )
    result = study.run()
    study.log.close()
    result.write(folder.path)
    return folder, result


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    folder, result = searched(tmp_path / "a")
    again = folder.read().result
    assert again.to_dict() == result.to_dict()
    assert again.trials == result.trials
    best = result.best()
    assert best is not None and folder.read().require_plan() == best.plan


def test_the_plan_of_a_run_is_that_of_its_file_and_without_one_what_the_log_leads_to(tmp_path: Path) -> None:
    folder, result = searched(tmp_path / "a", 3)
    worst = max(result.space.uniform_plans(), key=result.space.memory_bytes)
    write_json(folder.plan_file, plan_to_dict(result.space, worst))
    assert folder.read().require_plan() == worst
    folder.plan_file.unlink()
    assert folder.read().require_plan() == result.choose_plan() != worst


@pytest.mark.parametrize(
    ("known", "given", "resume", "message"),
    [
        (config(), config(seed=5), False, "search.seed is 0 there and 5 here"),
        (config(), config(seed=5), True, "search.seed is 0 there and 5 here"),
        (
            config(),
            config(),
            False,
            r"resume it with `qra search .*/a` .in Python: open_run.",
        ),
        (config(), config(), True, ""),
        (config(), config(evaluations=12), False, r"is 8.0 there and 12.0 here; .* .in Python: open_run."),
        (config(), config(evaluations=12), True, ""),
        (config("module"), config("layer"), True, "space.granularity is 'module' there and 'layer' here"),
    ],
)
def test_another_config_is_refused_with_the_field_and_both_values(
    tmp_path: Path, known: RunConfig, given: RunConfig, resume: bool, message: str
) -> None:
    """The same one has to be resumed; more evaluations are no other run."""
    folder, _ = searched(tmp_path / "a", settings=known)
    refused = pytest.raises(BadInput, match=message) if message else nullcontext()
    with refused, folder.begin(given, resume=resume):
        pass
    assert folder.config() == known, "the log may be another process's"
    folder.write_config(given)
    assert folder.config() == given


def test_a_config_without_a_log_does_not_hold_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    with folder.begin(config()):
        folder.write_config(config())
    with folder.begin(config(seed=5)):
        pass
    assert not folder.has_run


def test_a_log_that_could_not_be_written_does_not_hold_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    with folder.begin(config()):
        folder.log_file.touch()
    assert not folder.has_run
    with folder.begin(config()):
        pass


def test_options_of_a_strategy_reach_the_one_that_reads_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, object]] = []

    def make(name: str, **options: object) -> Strategy:
        made.append(options)
        return make_strategy(name)

    folder, _ = searched(tmp_path / "a", settings=config(options={"population": 8}))
    monkeypatch.setattr("qra_search.app.folder.make_strategy", make)
    folder.read()
    assert made == [{"population": 8}]


def test_a_log_whose_first_line_is_damaged_is_not_searched_on(tmp_path: Path) -> None:
    settings = make_config({"evaluator": "landscape", "options": {"layers": 4}, "search": {"evaluations": 6}})
    with Run(tmp_path / "a", settings) as run:
        run.search()
    content = run.folder.log_file.read_bytes()
    run.folder.log_file.write_bytes(content.replace(b"space", b'sp"ce', 1))
    with pytest.raises(BadInput, match="line 1 is damaged"), Run(tmp_path / "a", settings) as again:
        again.search(evaluations=8)


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="is not a folder"):
        RunFolder(tmp_path / "none").check()
    with pytest.raises(NoRun, match=r"holds no trials.jsonl"):
        RunFolder(tmp_path).check()
    folder, _ = searched(tmp_path / "a")
    begun = RunFolder(tmp_path / "b")
    with begun.begin(config()):
        begun.write_config(config())
    Study(ToyEvaluator(make_toy_space()), strategy="random", evaluations=1, log=begun.log_file).log.close()
    with pytest.raises(NoRun, match="has no plan yet"):
        begun.read().require_plan()
    with pytest.raises(BadInput, match="file name too long"):
        RunFolder("x" * 300).check()
    folder.config_file.unlink()
    with pytest.raises(NoRun, match=r"has no config.yaml"):
        folder.config()
