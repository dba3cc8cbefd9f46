"""The public kit catches a backend that breaks any one promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from qra_backends.conformance import BackendConformance
from qra_backends.reference.backend import ReferenceBackend
from qra_backends.reference.groupwise import PackedLinear
from torch import Tensor
from torch.nn import functional as F


def with_forward(forward: Callable[[Any, Tensor], Tensor]) -> type[ReferenceBackend]:
    """The reference whose layers compute something else."""

    class Layered(ReferenceBackend):
        layer = type("Layer", (PackedLinear,), {"forward": forward})

        def from_tensors(self, tensors, **shape):
            module = super().from_tensors(tensors, **shape)
            module.__class__ = self.layer
            return module

    return Layered


def forward(self: PackedLinear, x: Tensor) -> Tensor:
    return PackedLinear.forward(self, x)


def write_in_eval(self: PackedLinear, x: Tensor) -> Tensor:
    output = forward(self, x)
    if not self.training:
        self.codes.zero_()
    return output


LosesTheGradient = with_forward(lambda self, x: forward(self, x.detach()) + 0 * x.sum())
RoundsActivationsInEval = with_forward(
    lambda self, x: forward(self, x if self.training else (x * 16).round() / 16)
)
LosesTheBias = with_forward(lambda self, x: F.linear(x, self.dequantize(x.dtype)))
WritesToTensors = with_forward(write_in_eval)


class KeepsTheOriginal(ReferenceBackend):
    def quantize(self, linear, bits, **calibration):
        module = super().quantize(linear, bits)
        module.hidden = {"original": [linear.weight.detach()]}
        return module


class ForgetsMetadata(ReferenceBackend):
    def storage(self, bits):
        self.check_bits(bits)
        return SimpleNamespace(bytes=lambda out_features, in_features: out_features * in_features * bits // 8)


class ChangesTheSource(ReferenceBackend):
    def quantize(self, linear, bits, **calibration):
        module = super().quantize(linear, bits)
        linear.weight.data.copy_(module.dequantize())
        return module


class AcceptsAnyTensors(ReferenceBackend):
    def from_tensors(self, tensors, *, out_features, in_features, **shape):
        return super().from_tensors(
            tensors, out_features=min(out_features, 64), in_features=in_features, **shape
        )


class CopiesTensors(ReferenceBackend):
    def from_tensors(self, tensors, **shape):
        return super().from_tensors({name: tensor.clone() for name, tensor in tensors.items()}, **shape)


class RetrainsInPlace(ReferenceBackend):
    def replace_scales(self, module, scales):
        changed = super().replace_scales(module, scales)
        module.scale, module.offset = changed.scale, changed.offset
        return changed


COUNTED = "test_every_live_tensor_is_counted_to_the_byte"
UNTOUCHED = "test_the_source_linear_is_untouched_and_not_shared"
PRODUCT = "test_output_and_gradient_are_those_of_the_dequantized_weight_and_the_bias"
MAPPED = "test_mapped_from_a_file_it_is_the_same_and_the_file_is_neither_copied_nor_written_to"
CASES = [
    (RetrainsInPlace, "test_scales_that_can_be_trained_are_counted_and_change_the_weight_as_they_say"),
    (KeepsTheOriginal, COUNTED),
    (KeepsTheOriginal, UNTOUCHED),
    (ForgetsMetadata, COUNTED),
    (LosesTheGradient, PRODUCT),
    (LosesTheBias, PRODUCT),
    (RoundsActivationsInEval, "test_train_and_eval_mode_agree_and_eval_leaves_no_trace"),
    (ChangesTheSource, UNTOUCHED),
    (AcceptsAnyTensors, MAPPED),
    (CopiesTensors, MAPPED),
    (WritesToTensors, MAPPED),
]


@pytest.mark.parametrize(("backend", "test"), CASES, ids=lambda case: case if isinstance(case, str) else "")
def test_a_broken_promise_is_caught(backend: type[ReferenceBackend], test: str, tmp_path: Path):
    folder = [tmp_path] if test == MAPPED else []
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        getattr(BackendConformance(), test)(backend(), *folder)
