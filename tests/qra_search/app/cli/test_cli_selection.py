"""What `qra finetune` selects: the one tuning that a run shows, exports and loads, and the learning rate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_runner import LANDSCAPE, MIXED, Qra, read_records

from qra_search import Plan, plugins
from qra_search.app.folder import RunFolder
from qra_search.schemas import Evaluation
from qra_search.study.result import SearchResult

pytestmark = pytest.mark.usefixtures("tuner")


def show_steps(qra: Qra, run: Path) -> int:
    """Steps of the tuning that every view of a run has: what is exported, the comparison, `qra show` and the report."""
    folder = RunFolder(run)
    found, comparison = folder.read().find_tuning().record(), folder.read().comparison()
    assert found is not None and comparison is not None and comparison.chosen.records[0] == found
    assert f"Tuning {found.id} is exported, loaded and shown" in qra("show", run).out
    loss = f"{found.test_loss:.4g}"
    assert loss in qra("show", run).out and loss in folder.report_file.read_text()
    return found.steps


@pytest.fixture
def by_steps(tuner: dict[str, Any]) -> dict[str, Any]:
    """Tunings whose test loss tells their number of steps."""
    tuner["shift"] = lambda config: 0.01 * config.finetune.steps
    return tuner


def test_the_longest_comparison_stays_and_every_command_shows_it(
    qra: Qra, searched: Path, mixed: tuple[str | Path, ...], by_steps: dict[str, Any]
) -> None:
    for steps, shown in ((100, 100), (200, 200), (100, 200)):
        done = qra(*mixed, "--steps", steps)
        assert done.status == 0 and show_steps(qra, searched) == shown
        found = RunFolder(searched).read().find_tuning().record()
        assert found is not None and f"{found.test_loss:.4g}" in done.out, "the table is of what is exported"
    assert len(by_steps["tuned"]) == 4
    short = next(r for r in read_records(searched) if r.steps == 100 and r.plan == MIXED)
    text = " ".join(done.err.split())
    assert f"of 200 steps stays selected, because the new tuning {short.id} has only 100" in text
    assert f"To select the new one, run `qra show {searched} --tuning {short.id}`" in text
    assert qra(*mixed, "--steps", 100, "--json").json["selected"] is False
    assert qra("show", searched, "--tuning", short.id).status == 0 and show_steps(qra, searched) == 100
    assert qra(*mixed, "--steps", 200).status == 0 and show_steps(qra, searched) == 200


def test_a_trial_of_rates_and_a_tuning_that_fails_leave_the_answer(
    qra: Qra, searched: Path, by_steps: dict[str, Any]
) -> None:
    assert qra("finetune", searched, "--steps", 60).status == 0
    before = RunFolder(searched).selection_file.read_bytes()
    by_steps["rates"] = {5e-4: 1.2, 2e-3: 1.1}
    assert qra("finetune", searched, "--steps", 20, "--rates", "5e-4,2e-3").status == 0
    assert RunFolder(searched).selection_file.read_bytes() == before and show_steps(qra, searched) == 60
    by_steps["rates"] = {3e-3: 9.0}
    done = qra("finetune", searched, "--steps", 80, "--set", "training.learning_rate=0.003")
    assert done.status == 1 and "stays selected" in done.err
    assert RunFolder(searched).selection_file.read_bytes() == before and show_steps(qra, searched) == 60


def test_that_a_named_tuning_is_selected_no_longer_is_said(
    qra: Qra, searched: Path, by_steps: dict[str, Any]
) -> None:
    assert qra("finetune", searched, "--steps", 60).status == 0
    named = RunFolder(searched).read().find_tuning().id
    assert qra("show", searched, "--tuning", named).status == 0
    done = qra("finetune", searched, "--steps", 80)
    assert f"tuning {named}, which you selected by --tuning, is no longer" in " ".join(done.err.split())
    assert "is no longer selected" not in qra("finetune", searched, "--steps", 100).err


def test_rates_select_the_best_and_rewrite_no_record(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    tuner["rates"] = {5e-4: 1.2, 1e-3: 1.1, 2e-3: 1.3}
    given = ("--against", "none", "--set", "training.learning_rate=0.001")
    assert qra("finetune", searched, *given).status == 0
    first = {file: file.read_bytes() for file in searched.glob("tunings/*/record.json")}
    assert qra("finetune", searched, "--rates", "5e-4,1e-3,2e-3", "--against", "none").status == 0
    assert first and all(file.read_bytes() == content for file, content in first.items())
    exported = RunFolder(searched).read().find_tuning().record()
    assert exported is not None and exported.learning_rate == 1e-3


def test_an_interrupted_comparison_selects_nothing_and_its_tunings_are_listed(
    qra: Qra, searched: Path, mixed: tuple[str | Path, ...], tuner: dict[str, Any]
) -> None:
    tuner["stops_after"] = 1
    assert qra(*mixed).status == 130
    folder = RunFolder(searched)
    assert folder.read().comparison() is None and not folder.selection_file.exists()
    (record,) = read_records(searched)
    assert record.id in qra("show", searched).out and record.id in folder.report_file.read_text()


def test_a_deleted_or_damaged_selection_is_said_with_the_mend(qra: Qra, searched: Path) -> None:
    assert qra("finetune", searched).status == 0
    folder = RunFolder(searched)
    for text in ("{", "[]", '{"format": "qra-selection/9", "tuning": "a", "budget_bytes": 1}'):
        folder.selection_file.write_text(text)
        done = qra("show", searched)
        assert done.status == 2 and "selection.json is" in done.err and done.err.count("\n") == 1
    folder.selection_file.unlink()
    done = qra("export", searched)
    assert done.status == 2 and f"has no selected tuning (tunings: {read_records(searched)[0].id}" in done.err
    assert qra("show", searched, "--tuning", "uniform").status == 2
    assert qra("show", searched, "--tuning", read_records(searched)[0].id[:6]).status == 0
    assert folder.read().find_tuning().id == read_records(searched)[0].id


def search_with_losses(qra: Qra, run: Path, monkeypatch: pytest.MonkeyPatch, gain: float) -> Any:
    """Search on, where each bit below 3 lowers the loss by so much."""
    from qra_eval.evaluators.landscape import Landscape

    def evaluate(self: Landscape, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        loss = 2.0 + 0.001 * (seed % 3) - gain * (3 - self.space.mean_bits(plan))
        return Evaluation(loss, self.space.memory_bytes(plan), fidelity=fidelity, seed=seed)

    monkeypatch.setattr(Landscape, "evaluate", evaluate)
    return qra("search", run, "--evaluations", 30)


@pytest.mark.parametrize(
    ("strategy", "gain", "is_better"),
    [
        ("qra", 1e-6, False),
        ("qra", 1.0, True),
        ("random", 1.0, False),  # which says of no loss how sure it is
    ],
)
def test_a_search_takes_the_place_of_a_tuned_plan_only_if_its_own_is_better_than_chance(
    qra: Qra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, gain: float, is_better: bool
) -> None:
    run = tmp_path / "a"
    words = ("plan", *LANDSCAPE, "--set", f"search.strategy={strategy}", "--memory", "uniform3r8")
    assert qra(*words, "--out", run).status == 0
    assert qra("finetune", run).status == 0
    folder = RunFolder(run)
    tuned, selected = folder.read().require_plan(), folder.selection_file.read_bytes()
    done = search_with_losses(qra, run, monkeypatch, gain)
    text = " ".join(done.err.split())
    assert done.status == 0 and folder.selection_file.read_bytes() == selected
    comparison = folder.read().comparison()
    assert comparison is not None and comparison.chosen.plan == tuned, "what is shown was tuned"
    if is_better:
        assert folder.read().require_plan() != tuned
        assert f"stays selected until `qra finetune {run}` has tuned the search's plan" in text
        assert "is not tuned yet. These figures are for another plan." in " ".join(done.out.split())
    else:
        assert (
            folder.read().require_plan() == tuned
            and "by more than chance" in text
            and "no plan of the search beats" in text
        )


def test_a_run_is_read_once_for_a_command(qra: Qra, searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = SearchResult.from_state

    def count(*given: Any) -> SearchResult:
        made.append(1)
        return original(*given)

    monkeypatch.setattr(SearchResult, "from_state", count)
    for words in (("finetune", searched, "--rates", "1e-3,2e-3"), ("show", searched), ("report", searched)):
        made.clear()
        assert qra(*words).status == 0 and len(made) == 1, words


def test_a_tuning_that_was_not_named_is_named_before_it_answers(
    qra: Qra, searched: Path, tuner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qra("finetune", searched).status == 0
    answer = SimpleNamespace(tokens=1, tokens_per_second=1.0, resident_bytes=2 << 20)
    evaluators = plugins.load("evaluators", "landscape")
    monkeypatch.setattr(evaluators, "generate", lambda *_, **options: answer, raising=False)
    id = RunFolder(searched).read().find_tuning().id
    assert f"using tuning {id}: " in qra("generate", searched, "a").err
    assert "using tuning" not in qra("generate", searched, "a", "--tuning", id).err


RATES = ("--rates", "5e-4,1e-3,2e-3")


def list_rates(run: Path) -> list[float]:
    return sorted(record.settings["training"]["learning_rate"] for record in read_records(run))


def test_the_plan_is_tuned_at_each_rate_and_all_else_at_the_best(
    qra: Qra, searched: Path, tuner: dict[str, Any]
) -> None:
    tuner["rates"] = {5e-4: 1.2, 1e-3: 1.1, 2e-3: 1.3}
    done = qra("finetune", searched, *RATES, "--against", "all", "--seeds", "2")
    assert done.status == 0 and "learning rate 0.001 has the lowest validation loss" in done.err
    assert "learning rate 0.0005: validation loss 1.2000" in done.err
    tuned = len(tuner["tuned"])
    assert list_rates(searched) == [5e-4, *[1e-3] * (tuned - 2), 2e-3], (
        "the other rates have the plan's first seed"
    )
    assert {steps for *_, steps in tuner["tuned"]} == {100}, "each is a tuning in full"
    assert " 0.002 " in qra("show", searched).out, "tunings are told apart by their rates"
    assert qra("finetune", searched, *RATES, "--against", "all", "--seeds", "2").status == 0
    assert len(tuner["tuned"]) == tuned, "nothing is tuned twice"


def test_rates_go_on_after_an_interruption(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    tuner |= {"rates": {5e-4: 1.2, 1e-3: 1.1, 2e-3: 1.0}, "stops_after": 2}
    assert qra("finetune", searched, *RATES, "--against", "none").status == 130
    tuner["stops_after"] = 10
    assert qra("finetune", searched, *RATES, "--against", "none").status == 0
    assert len(tuner["tuned"]) == 3 and list_rates(searched) == [5e-4, 1e-3, 2e-3]


def test_a_rate_that_diverges_is_said_and_left_out(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    tuner["rates"] = {5e-4: 1.2, 1e-3: 1.1, 2e-3: 9.0}
    done = qra("finetune", searched, *RATES, "--against", "none")
    assert (
        done.status == 0
        and "learning rate 0.002: the plan could not be tuned with seed 0: diverged" in done.err
    )
    assert "learning rate 0.001 has the lowest validation loss" in done.err
    tuner["rates"] = {5e-4: 1.2, 4e-3: float("inf")}
    done = qra("finetune", searched, "--rates", "5e-4,4e-3", "--against", "none")
    assert (
        done.status == 0
        and "learning rate 0.004: the plan could not be tuned with seed 0: diverged" in done.err
    )
    tuner["rates"] = {0.1: 9.0, 0.2: 9.0}
    done = qra("finetune", searched, "--rates", "0.1,0.2", "--against", "none")
    assert done.status == 1 and "no tuning ended at the learning rates 0.1, 0.2" in done.err


def test_rates_that_cannot_be_compared_are_refused(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    assert qra("finetune", searched, "--rates", "fast").status == 2
    assert qra("finetune", searched, "--rates", ",").status == 2
    refused = qra("finetune", searched, "--rates", "1e-3,0")
    assert refused.status == 2 and "training.learning_rate is 0" in refused.err and not tuner["tuned"]
    tuner["rates"] = {5e-4: None}
    done = qra("finetune", searched, *RATES)
    assert done.status == 2 and "--rates compares validation losses" in done.err


def test_trials_foretell_the_rate_once_for_all_plans(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    """The best rate of the stand-in is 0.002 at 600 steps."""
    tuner["stops_after"] = 2
    assert qra("finetune", searched, "--steps", 600, "--against", "none").status == 130
    tuner["stops_after"] = 100
    done = qra("finetune", searched, "--steps", 600, "--against", "all")
    assert done.status == 0 and "learning rate 0.002 for 600 steps, foretold from 3 trials of 100" in done.err
    assert len(tuner["tried"]) == 3, "one that was made is not made again"
    assert set(list_rates(searched)) == {0.002}, "the trials are no tunings of the run"
    assert len({plan for plan, *_ in tuner["tried"]}) == 1
    assert qra("finetune", searched, "--steps", 600, "--plan", "uniform2r4").status == 0
    assert len(tuner["tried"]) == 3
    assert "foretold" in RunFolder(searched).report_file.read_text()


def test_a_short_tuning_takes_the_rate_of_its_steps(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    done = qra("finetune", searched, "--steps", 150, "--against", "none")
    assert done.status == 0 and "0.0019 for 150 steps, foretold from the number of steps alone" in done.err
    assert not tuner["tried"] and list_rates(searched) == [0.0019]
    done = qra("finetune", searched, "--steps", 150, "--set", "training.learning_rate=0.003")
    assert "foretold" not in done.err and list_rates(searched) == [0.0019, 0.003]


def test_damaged_trials_are_said(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    RunFolder(searched).rates_file.write_text("{}\n")
    refused = qra("finetune", searched, "--steps", 600)
    assert refused.status == 2 and "rates.jsonl is damaged: delete it" in refused.err
