"""Short tunings at a learning rate: what they leave, and that those that diverge or are far behind end early."""

from __future__ import annotations

import math

from evaluators import make_evaluator

from qra_search.app.evaluator import RateTrial

STEPS = 10


def test_a_trial_gives_a_loss_and_changes_nothing_of_the_tuning():
    evaluator = make_evaluator(
        training={"batch_size": 2},
        evaluation={"validation_rows": 8},
        finetune={"steps": STEPS, "test_rows": 8, "scored_rows": 0, "sample_answers": 0},
        space={"bits": [16], "ranks": [8], "granularity": "layer"},
        quantization={"embeddings": 16},
        dtype="float32",
    )
    plan = evaluator.space.uniform(16, 8)
    slow, good = (evaluator.try_rate(plan, rate, STEPS) for rate in (1e-6, 1e-2))
    assert good.loss < slow.loss and good.made == STEPS and len(good.curve) == 10
    ended = evaluator.try_rate(plan, 1e-6, STEPS, beside=RateTrial(1e-2, STEPS, STEPS, 1.0, (0.1,) * 10))
    assert ended.made == STEPS // 2 and len(ended.curve) == 5
    assert math.isclose(ended.loss, ended.curve[-1] / 0.1), "as far behind at the end as at its middle"
    assert evaluator.try_rate(plan, 1e-2, STEPS, beside=slow) == good
    diverged = evaluator.try_rate(plan, 1e30, STEPS)
    assert math.isinf(diverged.loss) and diverged.made < STEPS
    assert evaluator.tuning_steps() == STEPS and evaluator.describe()["training"]["learning_rate"] == "auto"
    evaluator.set_learning_rate(1e-2)
    assert math.isclose(evaluator.tune(plan).validation_loss, good.loss, rel_tol=1e-6)
