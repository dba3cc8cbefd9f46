"""Launches by count, on the pretended GPU: a layer's training pass, every level, experts, quantizing."""

from __future__ import annotations

import pytest
import torch
from pretended_gpu import pretended_gpu
from qra_backends import kernels as our_kernels
from qra_backends import make_backend
from qra_backends.libraries import bitsandbytes
from torch import nn

pytest.importorskip("triton")

from launches import HIDDEN, Launches, counted_layer, dequantizing, levels, module_of

MOST, WEIGHTS = 260, 14
"""Launches of a layer, forward and backward; weights that are dequantized in it."""


@pytest.fixture
def gpu(monkeypatch):
    with pretended_gpu() as gpu:
        monkeypatch.setattr(our_kernels, "is_usable", lambda device: True)
        yield gpu


def test_a_layer_launches_little_at_every_level(monkeypatch):
    monkeypatch.setattr(bitsandbytes, "NUMBERS_AT_ONCE", HIDDEN)  # of a CPU, whose caches hold so many
    with counted_layer() as count:
        rest = count(make_backend("reference"), 3).count - WEIGHTS
        assert count(make_backend("bitsandbytes"), 8).count == rest + 2 * WEIGHTS
        for name, backend, bits in levels():
            launches = dequantizing(module_of(backend, bits))
            assert rest + WEIGHTS * launches.count <= MOST, (name, launches.by_name)


@pytest.mark.parametrize(
    ("name", "bits", "most"), [("reference", 3, 2.6), ("reference", 5, 2.9), ("compressed-tensors", 4, 2.6)]
)
def test_a_weight_is_made_by_reading_its_codes_and_writing_it_once(name, bits, most, gpu):
    launches = dequantizing(module_of(make_backend(name), bits))
    assert launches.count == 1 and launches.bytes / HIDDEN**2 <= most


def test_quantizing_with_feedback_takes_less_than_a_launch_a_column(gpu):
    counts = []
    for columns in (HIDDEN, 2 * HIDDEN):
        linear, hessian = nn.Linear(columns, 8, bias=False, device="cuda"), torch.eye(columns, device="cuda")
        with Launches() as launches:
            make_backend("reference-gptq").quantize_levels(linear, (2, 3), hessian=hessian)
        counts.append(launches.count)
    assert counts[1] - counts[0] < HIDDEN, counts
