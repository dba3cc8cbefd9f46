"""Losses from the head at labelled positions are what the plain way computes."""

from __future__ import annotations

import pytest
import torch
from token_rows import CPU, rows, tiny
from torch.nn import functional as F

from qra_eval.tasks.batches import CrossEntropy, make_batches, measure_loss, measure_row_losses
from qra_eval.tasks.encoding import IGNORED


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
