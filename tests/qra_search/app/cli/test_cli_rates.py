"""The learning rate of `qra finetune`: foretold from short trials, or chosen by full tunings (`--rates`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli_runner import Qra, read_records

from qra_search.app.folder import RunFolder

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
    assert (
        done.status == 1
        and "the plan cannot be tuned at any of 2 learning rates: give lower ones" in done.err
    )


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
    assert done.status == 0 and "learning rate 0.002 for 150 steps, foretold from their number" in done.err
    assert not tuner["tried"] and list_rates(searched) == [0.002]
    done = qra("finetune", searched, "--steps", 150, "--set", "training.learning_rate=0.003")
    assert "foretold" not in done.err and list_rates(searched) == [0.002, 0.003]


def test_damaged_trials_are_said(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    RunFolder(searched).rates_file.write_text("{}\n")
    refused = qra("finetune", searched, "--steps", 600)
    assert refused.status == 2 and "rates.jsonl is damaged: delete it" in refused.err
