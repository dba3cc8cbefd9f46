"""The scales and offsets of the plan in place, trained along with its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.scales import TrainedGroups
from qra_search.space.memory import UNQUANTIZED_BITS


@contextmanager
def scales_in_training(quantized: QuantizedModel) -> Iterator[None]:
    """Scales and offsets are parameters of the adapted linears, for as long as the context lasts.

    Afterwards they are in place as they are stored, until the next plan is applied. Those of the bank, which are mapped
    and shared, are never written to: the plan in place has copies of its own.
    """
    plan, init = quantized.applied
    start = quantized.initialiser(init)
    placed = [
        (linear.name, bits, rank)
        for group, bits, rank in zip(quantized.space.groups, plan.bits, plan.ranks, strict=True)
        for linear in group.linears
        if linear.name in quantized.wrapped
        and bits != UNQUANTIZED_BITS
        and quantized.backend.trainable_numbers(bits, linear.out_features, linear.in_features)
    ]
    for name, bits, rank in placed:
        module = start.module(name, bits, rank)
        groups = quantized.backend.trainable(module)
        if groups is not None:
            wrapper = quantized.wrapped[name]
            wrapper.set_base(module=module)
            wrapper.trained = TrainedGroups(quantized.backend, groups, keep=quantized.materialised)
    try:
        yield
    finally:
        for name, bits, rank in placed:
            wrapper = quantized.wrapped[name]
            if wrapper.trained is not None:
                wrapper.groups, wrapper.trained = wrapper.trained.groups(), None
                quantized.put_base(start, name, bits, rank, quantized.materialised)
