"""The backend as a searched choice, on a real model: searched, tuned, saved, reloaded, exported and reported."""

from __future__ import annotations

import json

import pytest

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tuning.final import load_base
from qra_search import Plan, search
from qra_search.cli import common
from qra_search.config import QuantizationConfig, SpaceConfig, TrainingConfig


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    config = common.settings(None, backend="2=reference,4=reference+bitsandbytes-nf4")
    assert config.quantization.backend == {2: "reference", 4: ["reference", "bitsandbytes-nf4"]}
    return QuantizedLoRAEvaluator(
        "tiny",
        "arithmetic",
        quantization=QuantizationConfig(
            backend=config.quantization.backend, cache=str(tmp_path_factory.mktemp("bank"))
        ),
        space=SpaceConfig(bits=(2, 4, 16), ranks=(0, 4), granularity="layer"),
        training=TrainingConfig(steps=2, batch_size=2, validation_rows=4, test_rows=4, final_steps=2),
    )


def test_the_space_has_a_level_for_each_backend(evaluator):
    assert evaluator.space.bits == (2, 4, 104, 16)
    assert evaluator.space.backends == {2: "reference", 4: "reference", 104: "bitsandbytes-nf4"}
    uniform = [Plan((b,) * len(evaluator.space), (0,) * len(evaluator.space)) for b in (4, 104)]
    losses = [evaluator.evaluate(plan).loss for plan in uniform]
    assert losses[0] != losses[1]


def test_it_is_searched_and_a_plan_with_both_reloads_exactly(evaluator, tmp_path):
    groups = len(evaluator.space)
    result = search(evaluator, strategy="uniform", evaluations=20, log=tmp_path / "trials.jsonl")
    assert any(104 in trial.plan.bits for trial in result.trials)
    plan = Plan(tuple((104, 4)[i % 2] for i in range(groups)), (4,) * groups)
    tuned = evaluator.tune(plan, folder=tmp_path)
    assert tuned.reload_difference == 0
    data = json.loads((tmp_path / "plan.json").read_text())
    assert [g["bits"] for g in data["groups"]] == [4] * groups and data["groups"][0]["level"] == 104
    model, _ = load_base(tmp_path)
    kinds = {type(model.get_submodule(group["linears"][0])).__name__ for group in data["groups"][:2]}
    assert len(kinds) == 2
