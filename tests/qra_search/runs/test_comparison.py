"""The final comparison on test data: who takes part, what is written, and that it goes on where it was broken off."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qra_search import Plan, search
from qra_search.evaluation.evaluator import EvaluationFailed, ReloadFailed, Tuned
from qra_search.report import formatting
from qra_search.report.finding import finding
from qra_search.runs.comparison import TestResult, TuningFailed, metrics_of, opponents, read_test
from qra_search.runs.contest import Contest
from qra_search.study.listener import Listener
from qra_search.testing.scenarios import ToyEvaluator, toy_space
from qra_search.workflow.comparing import compare_on_test

SPACE = toy_space()
FOUND = Plan((2, 3, 4, 8, 3), (4, 8, 16, 4, 8))


def result(plan: Plan, seed: int, loss: float) -> Tuned:
    return Tuned(plan, seed, 5, loss, {"exact_match": 0.5}, SPACE.of(plan).memory_bytes(plan), 1.0)


class Tuner(ToyEvaluator):
    """Tunes at once; the loss is the mean of the bits, negated, and a hundredth a seed."""

    def __init__(self, fail_after: int | None = None):
        super().__init__(SPACE)
        self.calls: list[tuple[str, int]] = []
        self.saved: list[Plan] = []
        self.fail_after = fail_after

    def tune(self, plan: Plan, *, seed: int = 0, folder: Any = None, **_: Any) -> Tuned:
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append((plan.key, seed))
        if folder is not None:
            (folder / "adapter").mkdir(exist_ok=True)
            self.saved.append(plan)
        return result(plan, seed, 8 - sum(plan.bits) / 5 + seed / 100)


class Saying(Listener):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def compared(
    tuner: Any, found: Plan, others: list[Plan], path: Path, *, listener: Listener | None = None,
    save: Path | None = None, **settings: Any,
) -> list[TestResult]:  # fmt: skip
    contest = Contest(found, tuple(others), **{"limit": 9, **settings})
    return compare_on_test(tuner, contest, path, SPACE, listener or Listener(), save=save)


def test_all_opponents_are_the_uniform_plans_that_fit_and_no_others() -> None:
    limit = SPACE.memory_bytes(FOUND)
    fitting = opponents(SPACE, limit, "all")
    assert fitting == [p for p in SPACE.uniform_plans() if SPACE.memory_bytes(p) <= limit]
    assert len(fitting) > 1


def test_the_best_opponent_is_the_one_that_the_search_saw_as_best() -> None:
    result = search(ToyEvaluator(SPACE), strategy="random", evaluations=8, memory_budget="uniform4r8")
    limit = result.memory_budgets[0]
    best = min((c for c in result.uniform if c.memory_bytes <= limit), key=lambda c: c.loss)
    assert opponents(SPACE, limit, "best", result) == [best.plan]
    assert opponents(SPACE, limit, "best") == [opponents(SPACE, limit, "all")[-1]]
    assert opponents(SPACE, limit, "none") == []


def test_every_plan_is_tuned_with_every_seed_and_only_the_first_found_one_is_saved(tmp_path: Path) -> None:
    tuner = Tuner()
    uniform = [Plan((2,) * 5, (4,) * 5), Plan((3,) * 5, (4,) * 5)]
    tested = compared(tuner, FOUND, uniform, tmp_path / "t.json", limit=9, seeds=(0, 1), save=tmp_path)
    assert sorted(tuner.calls) == sorted((p.key, s) for p in (FOUND, *uniform) for s in (0, 1))
    assert tuner.saved == [FOUND]
    found = next(t for t in tested if t.role == "found")
    assert found.plan == FOUND
    assert found.losses == pytest.approx((4.0, 4.01))
    # Two values a hundredth apart: deviation 0.01 / sqrt(2), and its mean's error that over sqrt(2).
    assert found.loss_error == pytest.approx(0.005)
    assert [t.memory_bytes for t in tested] == sorted(t.memory_bytes for t in tested)
    assert read_test(json.loads((tmp_path / "t.json").read_text())) == tested


class Untuned(Tuner):
    """Knows the untuned model too, of which it is asked once."""

    def untuned(self) -> Tuned:
        self.calls.append(("untuned", 0))
        return replace(result(LEFT.uniform(16, 0), 0, 9.0), memory_bytes=10**7)  # type: ignore[arg-type]


LEFT = SPACE.unquantized


def test_the_untuned_model_and_16_bit_lora_stand_in_the_table_and_are_no_rivals(tmp_path: Path) -> None:
    tuner, sixteen = Untuned(), LEFT.uniform(16, SPACE.ranks[-1])
    tested = compared(tuner, FOUND, [LOW], tmp_path / "t.json", sixteen=sixteen)
    assert {t.role: t.loss for t in tested} == {"found": 4.0, "uniform": 6.0, "16-bit": -8.0, "untuned": 9.0}
    named = [formatting.tested_name(t, SPACE) for t in tested]
    assert "untuned, 16 bits" in named and f"16-bit LoRA, rank {SPACE.ranks[-1]}" in named
    searched = search(ToyEvaluator(SPACE), strategy="random", evaluations=3)
    found = finding(searched, tested)
    assert found is not None and (found.rival, found.untuned_loss) == (LOW, 9.0) and found.budget < 10**7
    calls = len(tuner.calls)
    assert compared(tuner, FOUND, [LOW], tmp_path / "t.json") == tested and len(tuner.calls) == calls
    assert json.dumps(json.loads((tmp_path / "t.json").read_text()), allow_nan=False)


def test_a_comparison_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    uniform = [Plan((b,) * 5, (4,) * 5) for b in (2, 3, 4)]
    options: dict[str, Any] = {"limit": 9, "save": tmp_path}
    broken = Tuner(fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        compared(broken, FOUND, uniform, tmp_path / "t.json", **options)
    rest, hears = Tuner(), Saying()
    tested = compared(rest, FOUND, uniform, tmp_path / "t.json", **options, listener=hears)
    assert hears.lines[0] == "resumed: 2 of 4 tunings are done, 2 left"
    assert not set(broken.calls) & set(rest.calls)
    whole = compared(Tuner(), FOUND, uniform, tmp_path / "other.json", **options)
    assert tested == whole


def test_other_settings_start_the_comparison_anew(tmp_path: Path) -> None:
    compared(Tuner(), FOUND, [], tmp_path / "t.json", limit=9, conditions={"finetune": {"steps": 5}})
    again = Tuner()
    compared(again, FOUND, [], tmp_path / "t.json", limit=9, conditions={"finetune": {"steps": 6}})
    assert again.calls == [(FOUND.key, 0)]


def test_a_plan_found_earlier_leaves_the_comparison(tmp_path: Path) -> None:
    earlier = Plan((8,) * 4 + (2,), (4,) * 5)
    compared(Tuner(), earlier, [], tmp_path / "t.json", limit=9)
    tested = compared(Tuner(), FOUND, [], tmp_path / "t.json", limit=9)
    assert [t.plan for t in tested] == [FOUND]


def test_a_tuning_that_diverged_is_kept_as_such(tmp_path: Path) -> None:
    class Diverging(Tuner):
        def tune(self, plan: Plan, **options: Any) -> Tuned:
            return Tuned(plan, 0, 5, math.nan, {"exact_match": math.nan}, SPACE.memory_bytes(plan), 1.0)

    (tested,) = compared(Diverging(), FOUND, [], tmp_path / "t.json", limit=9)
    assert tested.loss == math.inf
    assert tested.metrics == {}


class Failing(Tuner):
    """Cannot tune some plans."""

    def __init__(self, reasons: dict[Plan, str]):
        super().__init__()
        self.reasons = reasons

    def tune(self, plan: Plan, **options: Any) -> Tuned:
        done = super().tune(plan, **options)
        if plan in self.reasons:
            raise EvaluationFailed(self.reasons[plan])
        return done


LOW, HIGH = Plan((2,) * 5, (4,) * 5), Plan((3,) * 5, (4,) * 5)


def test_a_rival_that_cannot_be_tuned_is_recorded_with_its_reason_and_the_rest_go_on(tmp_path: Path) -> None:
    path, options = tmp_path / "t.json", {"limit": 9}
    failing = Failing({LOW: "diverged: training loss is nan at step 3 of 5"})
    tested = compared(failing, FOUND, [LOW, HIGH], path, **options)
    lost = next(t for t in tested if t.plan == LOW)
    assert (lost.loss, lost.failed) == (math.inf, "diverged: training loss is nan at step 3 of 5")
    assert lost.memory_bytes == SPACE.memory_bytes(LOW)
    assert [t.plan for t in tested if not t.failed] == sorted((FOUND, HIGH), key=SPACE.memory_bytes)
    assert metrics_of(tested) == ["exact_match"]
    assert read_test(json.loads(path.read_text())) == tested


def test_only_what_failed_is_tuned_again_if_the_comparison_is_asked_for_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit": 9}
    compared(Failing({LOW: "out of memory: 3 GiB"}), FOUND, [LOW, HIGH], tmp_path / "t.json", **options)
    again = Tuner()
    tested = compared(again, FOUND, [LOW, HIGH], tmp_path / "t.json", **options)
    assert again.calls == [(LOW.key, 0)] and not any(t.failed for t in tested)


def test_the_plan_found_failing_ends_the_comparison_and_is_recorded(tmp_path: Path) -> None:
    failing = Failing({FOUND: "out of memory: 3 GiB"})
    with pytest.raises(TuningFailed, match="the plan could not be tuned with seed 0: out of memory: 3 GiB"):
        compared(failing, FOUND, [LOW], tmp_path / "t.json", limit=9)
    (kept,) = read_test(json.loads((tmp_path / "t.json").read_text()))
    assert (kept.role, kept.failed) == ("found", "out of memory: 3 GiB")
    assert failing.calls == [(FOUND.key, 0)]


def test_what_was_measured_is_recorded_though_what_was_saved_does_not_load_back(tmp_path: Path) -> None:
    class Forgetful(Tuner):
        def tune(self, plan: Plan, **options: Any) -> Tuned:
            tuned = super().tune(plan, **options)
            if options["folder"] is not None:
                raise ReloadFailed("logits differ by up to 0.5", tuned)
            return tuned

    options: dict[str, Any] = {"limit": 9, "save": tmp_path}
    tested = compared(Forgetful(), FOUND, [LOW], tmp_path / "t.json", **options)
    found = next(t for t in tested if t.role == "found")
    assert found.loss == pytest.approx(4.0) and found.reload_error == "logits differ by up to 0.5"
    assert [t.reload_error for t in tested if t.plan == LOW] == [""]
    assert read_test(json.loads((tmp_path / "t.json").read_text())) == tested
    again = Tuner()
    assert compared(again, FOUND, [LOW], tmp_path / "t.json", **options) == tested and not again.calls
    (tmp_path / "adapter").rmdir()
    tested = compared(again, FOUND, [LOW], tmp_path / "t.json", **options)
    assert again.calls == [(FOUND.key, 0)] and not any(t.reload_error for t in tested)


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 'x'"):
        read_test({"format": "x"})
    assert read_test(None) == []
