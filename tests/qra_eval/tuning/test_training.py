"""The training loop lowers the loss, follows its seed, and changes nothing but the adapters."""

from __future__ import annotations

import signal
from functools import partial

import pytest
import torch
from token_rows import CPU, adapted, rows

from qra_eval.quantized import adapters
from qra_eval.tasks.batches import make_batches, measure_loss, schedule_batches
from qra_eval.tuning.training import CURVE_FILE, Diverged, FullTuning, schedule_rate, train
from qra_search.errors import RunFailed
from qra_search.sections import FinetuneConfig, TrainingConfig


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


STEPS = 8
SETTINGS = TrainingConfig(learning_rate=1e-2, accumulation=2, weight_decay=0.1)
FINETUNE = {"evaluate_every": 3, "checkpoint_minutes": 0}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours is run after it but what Python itself does."""


def validation(model):
    loss = measure_loss(model, make_batches(rows(6, seed=1), 6), CPU)
    model.train()
    return loss


def tune(folder, *, kill_at=0, interrupt_at=0, identity="a", validate=validation, **changed):
    model, wrapped = adapted(dropout=0.2)
    heard = []

    def on_step(step, figures):
        heard.append((step, figures))
        if step == kill_at:
            raise Killed
        if step == interrupt_at:
            signal.raise_signal(signal.SIGINT)

    settings = FinetuneConfig(**{**FINETUNE, **changed})
    full_tuning = FullTuning(settings, partial(validate, model), {"of": identity}, folder, on_step)
    batches = schedule_batches(rows(16), STEPS * SETTINGS.accumulation, 4, 0)
    with full_tuning.save_on_interrupt():
        groups = adapters.make_parameter_groups(wrapped)
        trained = train(model, groups, batches, SETTINGS, seed=3, device=CPU, callback=full_tuning)
    return adapters.cast_factors(wrapped, torch.float32), trained, heard, full_tuning


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return (*tune(folder), (folder / CURVE_FILE).read_text())


@pytest.mark.parametrize("kill_at", range(1, STEPS + 1))
def test_killed_at_any_step_and_resumed_it_ends_in_the_same_numbers(whole, tmp_path, kill_at):
    with pytest.raises(Killed):
        tune(tmp_path, kill_at=kill_at)
    state, trained, heard, watch = tune(tmp_path)
    assert same(state, whole[0]) and (trained.loss, trained.tokens) == (whole[1].loss, whole[1].tokens)
    assert (watch.best_value, watch.best_step) == (whole[3].best_value, whole[3].best_step)
    assert (tmp_path / CURVE_FILE).read_text() == whole[4]
    assert [step for step, _ in heard] == list(range(kill_at, STEPS + 1))


@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_ctrl_c_saves_the_running_step_and_resumed_it_ends_in_the_same_numbers(whole, tmp_path, step):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"step {step} of {STEPS} is saved"):
        tune(tmp_path, interrupt_at=step, checkpoint_minutes=5)
    assert signal.getsignal(signal.SIGINT) is before
    state, trained, heard, watch = tune(tmp_path)
    assert same(state, whole[0]) and trained.loss == whole[1].loss
    assert watch.resumed_after == step and [s for s, _ in heard] == list(range(step + 1, STEPS + 1))
    assert (tmp_path / CURVE_FILE).read_text() == whole[4]


def test_a_checkpoint_of_another_training_is_not_resumed_and_of_an_ended_one_no_step_is_made_again(
    whole, tmp_path
):
    with pytest.raises(Killed):
        tune(tmp_path, kill_at=5, identity="b")
    for steps in (STEPS, 0):
        state, trained, heard, full_tuning = tune(tmp_path)
        assert same(state, whole[0]) and trained.loss == whole[1].loss and len(heard) == steps
        assert (tmp_path / CURVE_FILE).read_text() == whole[4] and full_tuning.checkpoint.is_file()


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path):
    path = tune(tmp_path)[-1].checkpoint
    whole = path.read_bytes()
    for damaged in (b"", b"\x00" * 20, whole[:2000], whole[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(RunFailed, match=f"{path.name} is damaged .* delete it"):
            tune(tmp_path)


def test_the_adapters_of_the_lowest_loss_on_validation_rows_are_kept(tmp_path):
    values = iter([5.0, 3.0, 4.0, 3.5] + [6.0] * 4)
    states = []

    def looked(model):
        states.append({n: p.detach().clone() for n, p in model.named_parameters() if "lora" in n})
        return next(values)

    changed = {"evaluate_every": 1, "validate": looked}
    state, trained, heard, watch = tune(tmp_path, **changed)
    assert (watch.best_step, watch.best_value) == (2, 3.0)
    assert [told["validation_loss"] for _, told in heard[:4]] == [5.0, 3.0, 4.0, 3.5]
    best = {n.replace("model.layers", "layers"): p for n, p in states[1].items()}
    assert sorted(map(torch.Tensor.sum, best.values())) == sorted(map(torch.Tensor.sum, state.values()))
