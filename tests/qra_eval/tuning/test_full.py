"""A full tuning that is broken off at any step ends in the same numbers, to the bit; the best adapters are kept."""

from __future__ import annotations

import signal
from functools import partial

import pytest
import torch
from token_rows import CPU, adapted, rows

from qra_eval.quantized import adapters
from qra_eval.tasks.batches import make_batches, measure_loss, schedule_batches
from qra_eval.tuning.training import CURVE_FILE, FullTuning, train
from qra_search.errors import RunFailed
from qra_search.sections import FinetuneConfig, TrainingConfig

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
