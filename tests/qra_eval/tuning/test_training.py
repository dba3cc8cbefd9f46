"""The training loop lowers the loss, follows its seed, and changes nothing but the adapters."""

from __future__ import annotations

import pytest
import torch
from token_rows import CPU, adapted, rows

from qra_eval.quantized import adapters
from qra_eval.tasks.batches import make_batches, measure_loss, schedule_batches
from qra_eval.tuning.training import Diverged, schedule_rate, train
from qra_search.sections import TrainingConfig


def test_the_rate_rises_over_the_warm_up_and_then_falls_in_a_line():
    rates = [schedule_rate(s, 20, 0.1) for s in range(20)]
    assert rates == pytest.approx([0.5, 1.0, *(n / 19 for n in range(18, 0, -1))])


def run(model, wrapped, steps=10, seed=0, rate=1e-2, **settings):
    settings = TrainingConfig(learning_rate=rate, **settings)
    batches = schedule_batches(rows(16), steps * settings.accumulation, 4 // settings.accumulation, seed)
    return train(model, adapters.make_parameter_groups(wrapped), batches, settings, seed=seed, device=CPU)


def test_training_lowers_the_loss_and_changes_nothing_but_the_adapters():
    model, wrapped = adapted()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if "lora" not in n}
    before = measure_loss(model, make_batches(rows(16), 4), CPU)
    trained = run(model, wrapped, 30)
    assert measure_loss(model, make_batches(rows(16), 4), CPU) < before - 0.05
    assert trained.tokens > 0
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if "lora" not in n)


def test_accumulated_batches_step_as_one_batch_of_all_their_rows_does():
    losses = {}
    for accumulation in (1, 2):
        model, wrapped = adapted()
        settings = TrainingConfig(accumulation=accumulation)
        groups, chosen = adapters.make_parameter_groups(wrapped), make_batches(rows(8), 8 // accumulation)
        trained = train(model, groups, chosen, settings, seed=0, device=CPU)
        losses[accumulation] = (trained.loss, adapters.cast_factors(wrapped, torch.float32))
    assert losses[1][0] == pytest.approx(losses[2][0], rel=1e-6)
    for name, factor in losses[1][1].items():
        torch.testing.assert_close(factor, losses[2][1][name], rtol=1e-3, atol=1e-5)


def test_groups_have_rates_and_norms_of_their_own():
    model, wrapped = adapted()
    factors = adapters.make_parameter_groups(wrapped)[0].parameters
    still = {n: p for n, p in factors.items() if "lora_B" in n}
    moved = {n: p for n, p in factors.items() if "lora_A" in n}
    before = {n: p.detach().clone() for n, p in factors.items()}
    for name in still:
        still[name].data.fill_(0.01)
        before[name].fill_(0.01)
    groups = [adapters.ParameterGroup(moved), adapters.ParameterGroup(still, rate=0.0)]
    train(model, groups, schedule_batches(rows(16), 2, 4, 0), TrainingConfig(), seed=0, device=CPU)
    assert all(torch.equal(p, before[n]) for n, p in still.items())
    assert not any(torch.equal(p, before[n]) for n, p in moved.items())


def test_a_loss_that_is_not_finite_ends_the_training():
    model, wrapped = adapted()
    list(wrapped.values())[-1].lora_B.data.fill_(float("nan"))
    with pytest.raises(Diverged, match="step 1 of 10"):
        run(model, wrapped)
