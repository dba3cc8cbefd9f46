"""Hessians are those of the inputs, however many are held at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qra_eval.models.linears import find_linears
from qra_eval.models.tiny import tiny_model
from qra_eval.quantized.calibration import Hessians, input_moments
from qra_eval.tasks.batches import Batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float32).model


@pytest.fixture(scope="module")
def linears(model):
    return {found.name: found.module for found in find_linears(model)}


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(0)
    none = torch.zeros(0, dtype=torch.long)
    return [Batch(torch.randint(3, 90, (2, n)), none, none, 2 * n) for n in (9, 14)]


def test_they_are_the_mean_squares_of_what_each_linear_reads(model, linears, batches):
    name, seen = list(linears)[-1], []
    read = linears[name].register_forward_pre_hook
    handle = read(lambda module, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    moments, means = input_moments(model, linears, batches, CPU)
    handle.remove()
    rows = torch.cat(seen)
    torch.testing.assert_close(moments[name], rows.T @ rows / len(rows))
    torch.testing.assert_close(means[name], rows.mean(0))


def test_gathered_a_few_at_a_time_they_are_the_same(model, linears, batches):
    whole = Hessians(model, linears, batches, CPU)
    wanted = {name: whole(name) for name in linears}
    assert whole.passes == 1
    largest = max(4 * linear.in_features**2 for linear in linears.values())
    for room, passes in ((1, len(linears)), (2 * largest, 2)):
        parts = Hessians(model, linears, batches, CPU, room=room)
        assert all(torch.equal(parts(name), wanted[name]) for name in linears)
        assert parts.passes >= passes


def test_where_bfloat16_is_slow_the_passes_are_in_float32_and_the_model_is_left_as_it_was(batches):
    """Emulated, as on a processor with AVX2 alone, a pass in bfloat16 takes 40 times as long."""
    narrow, wide = (tiny_model(dtype=torch.bfloat16).model for _ in range(2))
    kept = {name: (p.data_ptr(), p.dtype) for name, p in narrow.named_parameters()}
    buffers = {name: b.clone() for name, b in narrow.named_buffers()}
    found = {f.name: f.module for f in find_linears(narrow)}
    hessians = Hessians(narrow, found, batches, CPU, compute=torch.float32)
    for parameter in wide.parameters():
        parameter.data = parameter.data.float()
    expected, _ = input_moments(wide, {f.name: f.module for f in find_linears(wide)}, batches, CPU)
    assert all(torch.equal(hessians(name), expected[name]) for name in found)
    assert {name: (p.data_ptr(), p.dtype) for name, p in narrow.named_parameters()} == kept
    assert all(torch.equal(b, buffers[name]) for name, b in narrow.named_buffers())


def test_a_linear_that_no_token_reaches_is_taken_as_uncorrelated(model, linears, batches):
    unused = nn.Linear(8, 4)
    moments, means = input_moments(model, {**linears, "expert": unused}, batches, CPU)
    assert torch.equal(moments["expert"], torch.eye(8)) and torch.equal(means["expert"], torch.zeros(8))
