"""The backend as a searched choice, on a real model: searched, tuned, saved, reloaded, exported and reported."""

from __future__ import annotations

import json

import pytest
from evaluators import make_evaluator

from qra_eval.tuning.loading import load_base
from qra_search import Plan, search
from qra_search.sections import QuantizationConfig, SpaceConfig


def make(folder, bits, backend):
    return make_evaluator(
        "tiny",
        "arithmetic",
        quantization=QuantizationConfig(backend=backend, embeddings=16, cache=str(folder)),
        space=SpaceConfig(bits=bits, ranks=(0, 4), granularity="layer"),
        training={"batch_size": 2},
        evaluation={"steps": 2, "validation_rows": 4},
        finetune={"test_rows": 4, "steps": 2},
    )


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    backend = {2: "reference", 4: ["reference", "bitsandbytes-nf4"]}
    return make(tmp_path_factory.mktemp("bank"), (2, 4, 16), backend)


def test_the_space_has_a_level_for_each_backend(evaluator):
    assert evaluator.space.bits == (2, "reference-4", "nf4", 16)
    assert list(map(str, evaluator.space.levels)) == [
        "2 bits",
        "reference-4 (4 bits, reference)",
        "nf4 (4 bits, bitsandbytes-nf4)",
        "16 bits",
    ]
    uniform = [evaluator.space.uniform(name, 0) for name in ("reference-4", "nf4")]
    losses = [evaluator.evaluate(plan).loss for plan in uniform]
    assert losses[0] != losses[1]


def test_it_is_searched_and_a_plan_with_both_reloads_exactly(evaluator, tmp_path):
    groups = len(evaluator.space)
    result = search(evaluator, strategy="uniform", evaluations=20, log=tmp_path / "trials.jsonl")
    assert any("nf4" in trial.plan.bits for trial in result.trials)
    plan = Plan(tuple(("nf4", "reference-4")[i % 2] for i in range(groups)), (4,) * groups)
    assert not evaluator.tune(plan, folder=tmp_path).reload_error
    data = json.loads((tmp_path / "plan.json").read_text())
    assert [g["bits"] for g in data["groups"]] == list(plan.bits) and data["groups"][0]["width"] == 4
    model, _ = load_base(tmp_path)
    kinds = {type(model.get_submodule(group["linears"][0])).__name__ for group in data["groups"][:2]}
    assert len(kinds) == 2


def test_sixteen_bits_alone_are_searched_over_ranks(tmp_path):
    """The LoRA that everyone compares with: nothing is quantized, so nothing is damaged, and rank is all there is."""
    evaluator = make(tmp_path, (16,), "reference")
    sensitivities = evaluator.sensitivities()
    assert (
        sensitivities.bits_damage.shape == (len(evaluator.space), 1) and not sensitivities.bits_damage.any()
    )
    assert (sensitivities.rank_gain[:, 1] > 0).all()
    result = search(evaluator, evaluations=3, seed=0)
    assert len(result.trials) >= 2 and not result.failures()
    assert {trial.plan.bits for trial in result.trials} == {(16,) * len(evaluator.space)}
    evaluator.close()
