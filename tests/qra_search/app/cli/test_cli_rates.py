"""`qra finetune --rates`: the learning rate that the plan's own tunings choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli_runner import Qra, read_records

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
    assert done.status == 2 and "measures no validation loss, which --rates compares" in done.err


def test_a_dry_run_counts_the_tunings_of_all_rates(qra: Qra, searched: Path, tuner: dict[str, Any]) -> None:
    shown = qra("finetune", searched, *RATES, "--against", "none", "--dry-run")
    assert "3, of 100 steps each: 1 plan with 1 seed, and the plan at 2 more learning rates" in shown.out
    assert "about 3 min" in shown.out and not tuner["tuned"]
