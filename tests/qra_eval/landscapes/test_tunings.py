"""The formula of real tunings says what it was made of, and the table holds what the design asks for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.strategies.foretold import ForetoldRate, find_top
from qra_eval.landscapes.tunings import (
    LEARNING_RATES,
    PRIORS,
    STEPS,
    TuningFormula,
    TuningsLandscape,
    TuningTraits,
    compute_traits,
    estimate_noise,
    fit_formula,
)
from qra_search import search
from qra_search.app.bench.run import build_benchmark_task
from qra_search.app.rates import LAW_SLOPE
from qra_search.errors import BadInput
from qra_search.log.state import StudyState
from qra_search.schemas import Group, Linear, Plan, Sensitivities
from qra_search.space.serialization import write_sensitivities
from qra_search.space.space import SearchSpace
from qra_search.strategies.simple import sample_plan
from qra_search.testing import EvaluatorContract

KINDS = 3


def draw_traits(count: int, seed: int = 0) -> TuningTraits:
    """Traits of tunings as the design has them: five rates, three ranks, three lengths."""
    rng = np.random.default_rng(seed)
    return TuningTraits(
        rng.gamma(1.0, 0.5, (count, KINDS)),
        rng.choice([-2.0, 0.0, 2.0], count),
        rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0], count),
        rng.choice([-1.0, 0.0, 1.0], count),
    )


def make_formula(**changes: float) -> TuningFormula:
    parameters = {name: mean for name, (mean, _) in PRIORS.items()} | changes
    return TuningFormula(parameters, np.array([1.0, 2.0, 0.5]))


def test_the_log_loss_is_the_sum_of_its_four_terms_and_nears_that_of_a_collapsed_model() -> None:
    p = {name: 0.1 * (place + 1) for place, name in enumerate(PRIORS)}
    traits = TuningTraits(np.array([[1.0, 0.5, 0.25]]), np.array([2.0]), np.array([3.0]), np.array([-1.0]))
    level = p["level"] - p["level_length"] + p["level_bend"]
    total = 1.0 * 1.0 + 2.0 * 0.5 + 0.5 * 0.25
    damage = math.exp(p["log_damage"] - p["damage_length"]) * total ** math.exp(p["log_power"])
    off = 3.0 - (p["top"] - p["top_length"] + 2.0 * p["top_rank"])
    rate = math.exp(p["log_bend"] - p["bend_length"]) * off**2
    tuned = level + damage - 2.0 * p["gain_rank"] + rate
    edge = p["edge"] - p["edge_length"] + 2.0 * p["edge_rank"]
    share = 1.0 / (1.0 + math.exp(-(3.0 - edge) / math.exp(p["log_width"])))
    collapsed = p["collapsed"] - p["collapsed_length"]
    expected = (1.0 - share) * tuned + share * collapsed
    assert make_formula(**p).predict(traits) == pytest.approx([expected])
    assert make_formula(**p | {"edge": 999.0}).predict(traits) == pytest.approx([tuned])
    assert make_formula(**p | {"edge": -999.0}).predict(traits) == pytest.approx([collapsed])


def test_a_fit_finds_the_best_rate_and_the_weights_of_kinds() -> None:
    made, traits = make_formula(top=0.5, top_length=-1.4, top_rank=-0.3, edge=4.0), draw_traits(200)
    noise = np.random.default_rng(1).normal(0.0, 0.02, 200)
    fitted = fit_formula(traits, np.exp(made.predict(traits) + noise))
    length, rank = np.array([-1.0, 1.0]), np.array([0.0, 2.0])
    assert fitted.compute_best_rate(length, rank) == pytest.approx(
        made.compute_best_rate(length, rank), abs=0.15
    )
    assert fitted.weights / fitted.weights[0] == pytest.approx(made.weights, rel=0.25)


def test_the_noise_is_the_deviation_between_seeds_of_like_tunings() -> None:
    def row(loss: float, seed: int, steps: int = 30, rate: float = 0.001) -> dict:
        alike = {"task": "t", "plan": "p", "learning_rate": rate, "steps": steps}
        return {**alike, "seed": seed, "test_loss": loss}

    rows = [row(math.exp(1.0), 0), row(math.exp(1.2), 1), row(math.exp(2.0), 0, rate=0.002)]
    rows += [row(1.0, 0, steps=120), row(1.0, 1, steps=120)]
    rows.append({**row(0.0, 2), "failed": "diverged"})
    del rows[-1]["test_loss"]
    assert estimate_noise(rows) == pytest.approx({30: 0.2 / math.sqrt(2), 120: 0.0})


RANKS = (2, 8, 32)
MADE = {name: mean for name, (mean, _) in PRIORS.items()} | {
    "top": 0.4,
    "top_length": 2 * LAW_SLOPE,
    "level_bend": 0.1,
    "edge": 4.0,
}


def make_space() -> SearchSpace:
    groups = [
        Group(
            name=f"layers.{depth}.{kind}",
            linears=(Linear(name=f"layers.{depth}.{kind}", out_features=64, in_features=64),),
            kind=kind,
        )
        for depth in range(4)
        for kind in ("up", "down")
    ]
    return SearchSpace(groups=groups, bits=(1, 2, 3, 4), ranks=RANKS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 120 tunings that a formula made, with noise of 2%."""
    folder, space, rng = tmp_path_factory.mktemp("table"), make_space(), np.random.default_rng(0)
    damage = rng.gamma(1.0, 0.3, (len(space), 1)) * np.array([4.0, 1.0, 0.25, 0.06])
    sensitivities = Sensitivities(damage, np.zeros((len(space), len(RANKS))), repair=0.0)
    write_sensitivities(folder / "sensitivities-banking77.json", space, sensitivities, {})
    formula, state, lines = TuningFormula(MADE, np.array([1.0, 1.5])), StudyState(space), []
    for number in range(120):
        plan = sample_plan(state, rng, space.memory.maximum)
        rate, steps = rng.choice(LEARNING_RATES), int(rng.choice(STEPS))
        traits = compute_traits(space, damage, space.encode_many([plan]), [rate], [steps])
        line = {"task": "banking77", "plan": plan.key, "learning_rate": rate, "steps": steps, "seed": 0}
        loss = float(np.exp(formula.predict(traits)[0] + 0.02 * rng.normal()))
        outcome = {"failed": "diverged"} if number == 7 else {"test_loss": loss}
        lines.append(json.dumps(line | outcome))
    (folder / "tunings.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def landscape(data: Path) -> TuningsLandscape:
    return TuningsLandscape("banking77", data=data)


class TestContract(EvaluatorContract):
    @pytest.fixture
    def evaluator(self, landscape: TuningsLandscape) -> TuningsLandscape:
        return landscape


def with_settings(plan: Plan, rate: float, length: float) -> Plan:
    return Plan(plan.bits, plan.ranks, (("learning_rate", rate), ("length", length)))


def test_its_losses_are_those_of_the_formula_that_made_the_table(
    landscape: TuningsLandscape, data: Path
) -> None:
    space, formula = landscape.space.without_extra, TuningFormula(MADE, np.array([1.0, 1.5]))
    plan = space.uniform(2, 8)
    damage = landscape.sensitivities().bits_damage
    for rate, length in ((0.001, 1.0), (0.004, 0.25), (0.008, 1 / 16)):
        traits = compute_traits(space, damage, space.encode_many([plan]), [rate], [480 * length])
        expected = float(np.exp(formula.predict(traits)[0]))
        assert landscape.true_loss(with_settings(plan, rate, length)) == pytest.approx(expected, rel=0.1)


def test_seeds_draw_other_plans_of_the_table(data: Path) -> None:
    plan = make_space().uniform(2, 8)
    losses = [TuningsLandscape("banking77", seed, data=data).true_loss(plan) for seed in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_no_plan_of_a_thousand_beats_the_reference(landscape: TuningsLandscape) -> None:
    budget = landscape.budgets[1]
    reference = landscape.find_reference_front((budget,))
    (plan,) = reference.plans
    assert landscape.space.memory_bytes(plan) <= budget
    assert landscape.true_loss(plan) == pytest.approx(reference.losses[0])
    state, rng = StudyState(landscape.space), np.random.default_rng(0)
    others = [sample_plan(state, rng, budget) for _ in range(1000)]
    assert min(map(landscape.true_loss, others)) >= reference.losses[0]


def test_a_task_that_the_table_lacks_is_refused_and_so_is_a_folder_without_a_table(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="banking77 and restaurant8k, not 'gsm8k'"):
        build_benchmark_task("tunings-gsm8k", seed=0)
    with pytest.raises(BadInput, match="tunings.jsonl does not exist: make a table"):
        TuningsLandscape("banking77", data=tmp_path)


@pytest.mark.parametrize("name", ["random", "nsga2", "bayes"])
def test_strategies_search_rate_and_length_with_the_plan(landscape: TuningsLandscape, name: str) -> None:
    result = search(landscape, strategy=name, evaluations=16, memory_budget=landscape.budgets[2], seed=0)
    settings = {trial.plan.extra for trial in result.trials}
    assert len({dict(extra).get("learning_rate") for extra in settings}) > 2
    assert len({trial.plan.length for trial in result.trials}) == 3
    assert len(result.trials) > 16  # short tunings cost less than one
    assert sum(trial.plan.length for trial in result.trials) < 17


def test_short_tunings_foretell_the_best_rate_of_long_ones(data: Path) -> None:
    landscape = TuningsLandscape("banking77", data=data, noise=0.0)
    result = search(
        landscape, strategy=ForetoldRate(), evaluations=8, memory_budget=landscape.budgets[2], seed=0
    )
    plans = [trial.plan for trial in result.trials if trial.proposal.origin == "foretold"]
    assert [plan.length for plan in plans[:6]] == [1 / 16] * 5 + [1.0]
    losses = [landscape.true_loss(with_settings(plans[5], rate, 1.0)) for rate in LEARNING_RATES]
    assert dict(plans[5].extra)["learning_rate"] == LEARNING_RATES[int(np.argmin(losses))]


def test_the_top_of_a_parabola_is_found() -> None:
    places = np.array([-3.0, -2.0, -1.0, 0.0, 1.0])
    assert find_top(places, 0.3 * (places + 1.3) ** 2) == pytest.approx(-1.3)
    assert find_top(places, -places) == 1.0
