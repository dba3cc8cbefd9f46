"""The folders of a run and of its tunings: what may be begun in them, what is read back, and any damage is told."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from qra_search import BadInput, Plan, Study
from qra_search.app.config import RunConfig, make_config
from qra_search.app.folder import NoRun, RunFolder
from qra_search.app.run import Run
from qra_search.app.tuning_folder import CHECKPOINT_FILE, TuningFolder
from qra_search.files import write_json
from qra_search.schemas import TuningRecord
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
    with pytest.raises(NoRun, match="there is no such folder"):
        RunFolder(tmp_path / "none").check()
    with pytest.raises(NoRun, match=r"holds neither trials.jsonl"):
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


RECORD = TuningRecord(
    Plan((2, "nf4"), (4, 0)),
    3,
    7,
    99,
    1.5,
    (0.1, 2.25),
    (3, 4),
    {"exact_match": (1.0, 0.0)},
    ({"prompt": "é", "wanted": "b", "before": "", "after": "c"},),
    settings={"training": {"rate": 1e-3}},
    finished_at=5.0,
)


def test_a_record_is_read_back_as_it_was_and_the_checkpoint_is_gone(tmp_path: Path) -> None:
    tuning = TuningFolder(tmp_path / RECORD.id)
    assert tuning.record() is None
    with tuning.lock() as is_ours:
        assert is_ours
        (tuning.path / CHECKPOINT_FILE).touch()
        tuning.write(RECORD)
    data = json.loads(tuning.record_file.read_text())
    assert (
        data["plan"] == RECORD.plan.to_dict() and data["id"] == RECORD.id and data["row_nats"] == [0.1, 2.25]
    )
    again = tuning.record()
    assert again == RECORD and again is not None and again.id == tuning.id
    assert not (tuning.path / CHECKPOINT_FILE).exists()


def test_scores_that_are_not_finite_cost_no_record(tmp_path: Path) -> None:
    tuning, odd = TuningFolder(tmp_path), {"odd": float("nan")}
    tuning.write(
        replace(RECORD, row_scores={**RECORD.row_scores, "odd": (1.0, float("inf"))}, commonest_scores=odd)
    )
    assert tuning.record() == RECORD


def test_the_id_tells_plans_seeds_and_settings_apart() -> None:
    records = [
        TuningRecord(plan, seed, 7, 9, settings=settings)
        for plan in (RECORD.plan, Plan((3, "nf4"), (4, 0)))
        for seed in (0, 1)
        for settings in ({}, {"a": 1})
    ]
    assert len({record.id for record in records}) == 8 and all(len(record.id) == 12 for record in records)
    assert TuningRecord(RECORD.plan, 0, 7, 9, seconds=9.0).id == records[0].id


def test_whatever_byte_of_a_record_is_flipped_it_is_refused_or_the_same(tmp_path: Path) -> None:
    tuning = TuningFolder(tmp_path)
    tuning.write(RECORD)
    whole = tuning.record_file.read_bytes()
    refused = 0
    for i in range(len(whole)):
        tuning.record_file.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        try:
            assert tuning.record() == RECORD, i
        except BadInput as error:
            assert str(tuning.record_file) in str(error)
            refused += 1
    assert refused > len(whole) // 2


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "qra-test/1"}', '{"format": "qra-tuning/1"}'])
def test_what_is_no_record_is_refused_in_a_line_with_the_mend(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(BadInput, match="record.json is (damaged, or was written|not JSON)"):
        TuningFolder(tmp_path).record()


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    with TuningFolder(tmp_path / "a").lock() as first, TuningFolder(tmp_path / "a").lock() as second:
        assert first and not second
        with TuningFolder(tmp_path / "b").lock() as other:
            assert other
    with TuningFolder(tmp_path / "a").lock(wait=True) as freed:
        assert freed
