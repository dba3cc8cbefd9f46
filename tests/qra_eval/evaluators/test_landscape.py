"""Parametric landscapes: deterministic, calibrated, and with a truth and a reference that can be relied on."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from qra_eval.evaluators.landscape import PRIORS, Landscape, build, make_landscape
from qra_eval.landscapes.families import FAMILIES
from qra_search.app.config import make_config
from qra_search.log.state import StudyState
from qra_search.space.serialization import check_sensitivities
from qra_search.strategies.simple import sample_plan
from qra_search.testing import EvaluatorContract


class TestContract(EvaluatorContract):
    @pytest.fixture
    def evaluator(self) -> Landscape:
        return make_landscape("interaction", 4, "module", seed=3)


def random_plans(landscape: Landscape, count: int, budget: int | None = None) -> list:
    state = StudyState(landscape.space)
    rng = np.random.default_rng(0)
    return [sample_plan(state, rng, budget or landscape.space.memory.maximum) for _ in range(count)]


def test_the_loss_of_a_plan_is_the_formula_written_out() -> None:
    landscape = make_landscape("interaction", 3, "module", seed=2)
    tables, space = landscape.tables, landscape.space
    plan = random_plans(landscape, 1)[0]
    b, r = space.encode(plan)
    t = [tables.damage[g, b[g]] * tables.left[g, b[g], r[g]] for g in range(len(space))]
    of_layer = [[g for g in range(len(space)) if tables.layer[g] == layer] for layer in range(3)]
    x = sum(t)
    for groups in of_layer:
        for g, h in itertools.permutations(groups, 2):
            x += tables.within[g] * tables.within[h] * (t[g] * t[h]) ** 0.5
    size = [sum(t[g] for g in groups) ** 0.5 for groups in of_layer]
    for i, j in itertools.combinations(range(3), 2):
        x += tables.coupling[i, j] * size[i] * size[j]
    expected = tables.base - sum(tables.gain[g, r[g]] for g in range(len(space)))
    expected += tables.cap * (1 - np.exp(-x / tables.cap))
    assert landscape.true_loss(plan) == pytest.approx(expected, abs=1e-12)


def test_noise_is_a_function_of_landscape_plan_seed_and_fidelity_in_any_process() -> None:
    code = (
        "from qra_eval.evaluators.landscape import make_landscape; l = make_landscape('interaction', 4, seed=7);"
        "print([l.evaluate(l.space.uniform(3, 8), fidelity=f, seed=s).loss for f in (0.25, 1.0) for s in (0, 1)]);"
        "import sys; assert not {'torch', 'transformers'} & set(sys.modules), 'a landscape needs no model'"
    )
    seen = eval(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    landscape = make_landscape("interaction", 4, seed=7)
    plan = landscape.space.uniform(3, 8)
    assert [landscape.evaluate(plan, fidelity=f, seed=s).loss for f in (0.25, 1.0) for s in (0, 1)] == seen
    assert len(set(seen)) == 4
    other = make_landscape("interaction", 4, seed=8)
    assert other.evaluate(plan).loss - other.true_loss(plan) != landscape.evaluate(
        plan
    ).loss - landscape.true_loss(plan)


def test_uniform_plans_cost_what_was_measured_on_the_real_model() -> None:
    """30 layers; medians over landscapes against the losses recorded on SmolLM2-135M after tuning."""
    recorded = {(2, 8): 6.734, (3, 4): 1.992, (3, 8): 1.714, (3, 32): 1.410, (4, 8): 1.189, (16, 8): 1.118}
    landscapes = [make_landscape("interaction", 30, seed=s, bits=(2, 3, 4, 8, 16)) for s in range(20)]
    for (bits, rank), loss in recorded.items():
        median = np.median([ls.true_loss(ls.space.uniform(bits, rank)) for ls in landscapes])
        assert median - 1.05 == pytest.approx(loss - 1.05, rel=0.15), (bits, rank)


def test_priors_have_the_stated_quality() -> None:
    made = {
        sensitivities: make_landscape("interaction", 32, seed=4, sensitivities=sensitivities)
        for sensitivities in PRIORS
    }
    true = made["measured"].tables.damage
    assert all((made[p].tables.damage == true).all() for p in PRIORS)
    measured, flat, shuffled = (made[p].sensitivities() for p in ("measured", "flat", "shuffled"))
    assert made["none"].sensitivities() is None
    for sensitivities in (measured, flat, shuffled):
        check_sensitivities(made["flat"].space, sensitivities)
        assert (np.diff(sensitivities.bits_damage, axis=1) <= 0).all()
    assert np.log(measured.bits_damage[:, 0] / true[:, 0]).std() == pytest.approx(0.35, rel=0.4)
    assert np.ptp(flat.bits_damage, axis=0) == pytest.approx(0.0, abs=1e-12)
    assert sorted(map(tuple, shuffled.bits_damage)) == sorted(map(tuple, measured.bits_damage))
    assert (shuffled.bits_damage != measured.bits_damage).any()
    assert measured.cost >= 1.0 and shuffled.cost == measured.cost and flat.cost == 0.0


def brute_force(landscape: Landscape, budget: int) -> float:
    space = landscape.space
    choices = list(itertools.product(range(len(space.bits)), range(len(space.ranks))))
    plans = np.array(list(itertools.product(choices, repeat=len(space))))
    codes = plans.transpose(0, 2, 1)
    return float(landscape.tables.compute_losses(codes[space.memory.bytes(codes) <= budget]).min())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_references_equal_brute_force_on_small_spaces(family: str, seed: int) -> None:
    landscape = make_landscape(family, 5, seed=seed, bits=(2, 3, 4), ranks=(4, 16))
    memory = landscape.space.memory
    budgets = tuple(
        int(memory.minimum + share * (memory.maximum - memory.minimum)) for share in (0.0, 0.3, 0.6)
    )
    reference = landscape.find_reference_front(budgets)
    assert reference.losses == pytest.approx([brute_force(landscape, budget) for budget in budgets], abs=1e-9)
    for plan, budget in zip(reference.plans, budgets, strict=True):
        assert landscape.space.memory_bytes(plan) <= budget
    assert reference.exact == (family == "additive")


def test_a_config_names_a_landscape() -> None:
    config = make_config(
        {
            "evaluator": "landscape",
            "space": {"granularity": "fused", "bits": [2, 4]},
            "options": {"family": "misleading", "layers": 3, "seed": 5, "sensitivities": "none"},
        }
    )
    landscape = build(config)
    assert len(landscape.space) == 12 and landscape.space.bits == (2, 4) and landscape.sensitivities() is None
    with pytest.raises(ValueError, match="the family of a landscape must be one of additive"):
        build(make_config({"options": {"family": "flat"}}))
    with pytest.raises(
        ValueError, match="unknown option of the landscape evaluator: 'layer': did you mean layers"
    ):
        build(make_config({"options": {"layer": 3}}))
