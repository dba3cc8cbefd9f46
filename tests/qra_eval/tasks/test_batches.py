"""Batches hold every row once, waste little on padding, and follow the seed."""

from __future__ import annotations

import pytest
import torch
from token_rows import CPU, rows, tiny
from torch.nn import functional as F

from qra_eval.tasks.batches import (
    CrossEntropy,
    collate,
    make_batches,
    make_pass_batches,
    measure_loss,
    measure_row_losses,
    schedule_batches,
)
from qra_eval.tasks.encoding import IGNORED, Encoded


def test_collated_rows_are_padded_at_the_right_without_labels():
    short = Encoded(torch.tensor([5, 6, 7]), torch.tensor([IGNORED, 6, 7]))
    batch = collate([short, Encoded(torch.arange(6), torch.full((6,), IGNORED))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 0, 0, 0], list(range(6))]
    assert batch.tokens == 9 and batch.positions.tolist() == [0, 1] and batch.targets.tolist() == [6, 7]


def test_batches_waste_little_on_padding_and_hold_every_row_once():
    some = rows(40)
    batches = make_batches(some, 8)
    assert sum(b.tokens for b in batches) == sum(map(len, some))
    assert sum(b.input_ids.numel() for b in batches) <= 1.2 * sum(map(len, some))
    assert sum(len(b.targets) for b in batches) == sum(int((r.labels[1:] != IGNORED).sum()) for r in some)


def test_rows_that_fill_no_batch_are_not_a_small_one_of_the_longest():
    some = rows(10)
    assert [len(b.input_ids) for b in make_batches(some, 8)] == [5, 5]
    assert [len(b.input_ids) for b in make_batches(some, 4)] == [3, 3, 4]
    assert [len(b.input_ids) for b in make_batches(some, 5)] == [5, 5]


def test_fewer_steps_see_a_prefix_of_the_rows():
    some = rows(64)
    few, many = schedule_batches(some, 2, 8, seed=0), schedule_batches(some, 8, 8, seed=0)
    seen = lambda batches: sorted(tuple(r) for b in batches for r in b.input_ids.tolist())  # noqa: E731
    longest = max(len(r) for r in some)
    pad = lambda r: tuple(r.input_ids.tolist() + [0] * (longest - len(r)))  # noqa: E731
    widen = lambda keys: sorted(k + (0,) * (longest - len(k)) for k in keys)  # noqa: E731
    assert widen(seen(few)) == sorted(pad(r) for r in some[:16])
    assert widen(seen(many)) == sorted(pad(r) for r in some)


def test_the_schedule_follows_the_seed_and_repeats_rows_when_they_run_out():
    some = rows(10)
    key = lambda batches: [b.input_ids.tolist() for b in batches]  # noqa: E731
    assert key(schedule_batches(some, 6, 4, seed=1)) == key(schedule_batches(some, 6, 4, seed=1))
    assert key(schedule_batches(some, 6, 4, seed=1)) != key(schedule_batches(some, 6, 4, seed=2))
    assert len(schedule_batches(some, 6, 4, seed=1)) == 6


def test_batches_have_four_lengths_from_one_power_of_two_to_the_next():
    lengths = {
        n: collate([Encoded(torch.arange(n), torch.arange(n))]).input_ids.shape[1] for n in range(1, 129)
    }
    assert all(n <= padded < 1.25 * n + 1 for n, padded in lengths.items())
    assert sorted({padded for padded in lengths.values() if padded > 32}) == [
        40,
        48,
        56,
        64,
        80,
        96,
        112,
        128,
    ]


def test_layer_wise_passes_take_few_lengths_and_say_how_far_their_rows_reach():
    lengths = [5, 9, 33, 40, 41, 64, 65, 70, 90]
    rows = [Encoded(torch.arange(n), torch.arange(n)) for n in lengths]
    batches = make_pass_batches(rows)
    assert [tuple(b.input_ids.shape) for b in batches] == [(8, 96), (1, 96)]
    assert [b.width for b in batches] == [70, 90] and sum(b.tokens for b in batches) == sum(lengths)
    plain = collate(rows[:8], multiple=1)
    assert plain.width == 0 and torch.equal(plain.targets, batches[0].targets)
    at = [divmod(int(p), 96) for p in batches[0].positions]
    assert at == [divmod(int(p), 70) for p in plain.positions]


def plain_loss(model, row):
    """Loss of one row alone, unpadded, from all its logits."""
    logits = model(input_ids=row.input_ids.unsqueeze(0)).logits[0, :-1].float()
    return F.cross_entropy(logits, row.labels[1:], ignore_index=IGNORED, reduction="sum"), (
        row.labels[1:] != IGNORED
    ).sum()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_loss_over_padded_batches_is_that_of_every_row_alone(family):
    model = tiny(family)
    with torch.no_grad():
        pairs = [plain_loss(model, row) for row in rows()]
    expected = float(sum(p[0] for p in pairs) / sum(p[1] for p in pairs))
    for size in (1, 4, 6):
        assert measure_loss(model, make_batches(rows(), size), CPU) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_losses_of_rows_are_those_of_each_row_alone_in_the_order_given():
    model, some = tiny(), rows()
    totals, counts = measure_row_losses(model, some, 4, CPU)
    for row, total, count in zip(some, totals, counts, strict=True):
        assert count == int((row.labels[1:] != IGNORED).sum())
        assert total == pytest.approx(float(plain_loss(model, row)[0]), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient_are_torchs(dtype):
    torch.manual_seed(0)
    logits = torch.randn(150, 37).to(dtype).requires_grad_()
    targets = torch.randint(0, 37, (150,))
    CrossEntropy.apply(logits, targets).backward()
    other = logits.detach().clone().requires_grad_()
    expected = F.cross_entropy(other.float(), targets, reduction="sum")
    expected.backward()
    assert float(CrossEntropy.apply(logits.detach(), targets)) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(logits.grad, other.grad)
