"""The evaluator `recorded`: a surrogate of a trial log that predicts what it was not shown."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qra_eval.evaluators.landscape import Landscape, make_landscape
from qra_eval.evaluators.recorded import RecordedEvaluator, build, read_record, record_of
from qra_eval.landscapes.damage_model import Fit, fit_surrogate
from qra_eval.landscapes.measured import SEED_NOISE
from qra_search.bench import task_budgets
from qra_search.config import make_config
from qra_search.study.study import Study
from qra_search.testing import EvaluatorContract

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "strategies"))
from held_out import BROKEN_RISE, cross_validate, fit_of  # noqa: E402


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return make_landscape("interaction", 12, "layer", seed=5)


@pytest.fixture(scope="module")
def logs(landscape: Landscape, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("logs")
    paths = []
    for strategy, evaluations in (("random", 60), ("additive", 40)):
        paths.append(folder / f"{strategy}.jsonl")
        budgets = task_budgets(landscape.space)
        study = Study(
            landscape, strategy=strategy, evaluations=evaluations, memory_budget=budgets, seed=1, log=paths[-1]
        )
        study.run()
        study.log.close()
    return paths


@pytest.fixture(scope="module")
def recorded(logs: list[Path]) -> RecordedEvaluator:
    return RecordedEvaluator(read_record(logs))


class TestContract(EvaluatorContract):
    @pytest.fixture
    def evaluator(self, recorded: RecordedEvaluator) -> RecordedEvaluator:
        return recorded


def test_a_log_gives_back_its_space_its_plans_and_its_prior(landscape: Landscape, recorded: RecordedEvaluator) -> None:
    assert recorded.space.signature == landscape.space.signature
    assert (recorded.record.sensitivities.bits_damage == landscape.sensitivities().bits_damage).all()
    assert len(recorded.record.loss) >= 80


def test_it_predicts_plans_that_it_was_not_shown(landscape: Landscape, recorded: RecordedEvaluator) -> None:
    error = cross_validate(recorded.space, recorded.record.sensitivities, fit_of(recorded.record))
    assert error["r2_good"] > 0.9 and error["rank_correlation_good"] > 0.9
    assert error["rmse_good"] < 0.3 * error["spread_good"]
    # What it says of its own error holds against the noise-free truth on fresh plans as well.
    other = Study(landscape, strategy="random", evaluations=60, memory_budget=task_budgets(landscape.space), seed=9)
    fresh = [c.plan for c in other.run().candidates]
    true = np.array([landscape.true_loss(plan) for plan in fresh])
    good = true < true.min() + BROKEN_RISE
    predicted = np.array([recorded.true_loss(plan) for plan in fresh])
    assert np.sqrt(np.mean((predicted - true)[good] ** 2)) < 4 * error["rmse_good"]


def test_a_shuffled_log_is_said_to_be_unpredictable(recorded: RecordedEvaluator) -> None:
    record = recorded.record
    loss = np.random.default_rng(0).permutation(record.loss)
    error = cross_validate(record.space, record.sensitivities, Fit(record.b, record.r, loss, np.full(len(loss), 0.005)))
    assert error["r2_good"] < 0.3


def test_many_predictions_equal_single_ones_and_the_kernel_written_out(recorded: RecordedEvaluator) -> None:
    record, model = recorded.record, recorded.surrogate
    b, r = record.b[:5], record.r[:5]
    many = recorded.true_losses(b, r)
    assert many == pytest.approx([recorded.true_loss(recorded.space.decode(*x)) for x in zip(b, r, strict=True)])
    floor, rise, share = model._physics(b, r)
    others = model._physics(record.b, record.r)[2]
    groups = len(recorded.space)
    for i in range(5):
        f = 0.0
        for j in range(len(record.loss)):
            bits, both = b[i] == record.b[j], (b[i] == record.b[j]) & (r[i] == record.r[j])
            shared = share[i] * others[j] * groups
            covariance = model.widths[0] ** 2 * shared[bits].sum() + model.widths[1] ** 2 * shared[both].sum()
            covariance += model.widths[2] ** 2 * np.exp(-(1 - both.mean()) / model.widths[3])
            f += covariance * model._weights[j]
        assert many[i] == pytest.approx(floor[i] + rise[i] * np.exp(f), abs=1e-9)


def test_with_little_noise_the_fit_goes_through_its_data(landscape: Landscape, recorded: RecordedEvaluator) -> None:
    record = recorded.record
    true = landscape.true_losses(record.b, record.r)
    model = fit_surrogate(record.space, record.sensitivities, Fit(record.b, record.r, true, np.full(len(true), 1e-4)))
    good = true < true.min() + BROKEN_RISE
    assert np.abs(model.losses(record.b, record.r) - true)[good].max() < 0.03


def test_references_lie_within_the_budget_and_below_all_recorded_plans(recorded: RecordedEvaluator) -> None:
    record, budgets = recorded.record, task_budgets(recorded.space)
    reference = recorded.reference_front(budgets)
    sizes = recorded.space.memory.bytes(record.b, record.r)
    predicted = recorded.true_losses(record.b, record.r)
    for plan, loss, budget in zip(reference.plans, reference.losses, budgets, strict=True):
        assert recorded.space.memory_bytes(plan) <= budget
        assert loss <= predicted[sizes <= budget].min() + 1e-9


def test_replicates_give_the_noise_between_seeds(landscape: Landscape) -> None:
    rng = np.random.default_rng(0)
    plans = landscape.space.uniform_plans()
    record = record_of(landscape.space, None, {plan: 2.0 + 0.02 * rng.normal(size=20) for plan in plans})
    assert record.seed_noise == pytest.approx(0.02, rel=0.2)
    assert (record.replicates == 20).all() and len(record.loss) == len(plans)


def test_one_seed_in_two_logs_says_nothing_of_the_noise(logs: list[Path]) -> None:
    once, twice = read_record(logs[:1]), read_record([logs[0], logs[0]])
    assert twice.seed_noise == once.seed_noise == SEED_NOISE
    assert (twice.replicates == once.replicates).all()


def test_a_config_names_a_log(logs: list[Path]) -> None:
    evaluator = build(make_config({"evaluator": "recorded", "options": {"log": [str(p) for p in logs], "seed": 2}}))
    assert evaluator.describe()["recorded"] == ["random.jsonl", "additive.jsonl"]
    with pytest.raises(ValueError, match="needs options.log"):
        build(make_config({"evaluator": "recorded"}))
    with pytest.raises(ValueError, match=r"unknown options of the recorded evaluator: \['logs'\]"):
        build(make_config({"options": {"log": str(logs[0]), "logs": 1}}))


def test_too_few_or_missing_evaluations_are_refused(landscape: Landscape, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 distinct evaluated plans are too few"):
        record_of(landscape.space, None, {landscape.space.uniform(3, 8): [1.0]})
    with pytest.raises(ValueError, match="no trial log 'none.jsonl'"):
        read_record([tmp_path / "none.jsonl"])
