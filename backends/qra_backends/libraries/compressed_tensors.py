"""Backend `compressed-tensors`: calibrated codes on a symmetric grid, in tensors that vLLM and transformers load."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.calibration import check_damping
from qra_backends.modules import Scales
from qra_backends.reference import groupwise
from qra_backends.reference.gptq import ErrorFeedback
from qra_backends.storage import Expected, find_group_size

GROUP_SIZES = (32, 64, 128)
WORD_BITS = 32
SCALE_DTYPE = torch.bfloat16
_SHRINK_FACTORS = tuple(1 - 0.07 * i for i in range(7))  # shares of the full range to start from
_NARROWEST_WHOLE = 5  # bits from which on the full range is the only start: there is next to nothing to clip
_REFITS = 2  # least-squares steps of the scale from each start


class CompressedIntegers(groupwise.GroupedLinear):
    """y = x Wᵀ + bias with W[o, i] = scale[o, g] · (code[o, i] - 2^(bits - 1)), g = i // group_size.

    Buffers: the tensors of the `pack-quantized` form by their names, the scales as integers of their size.
    """

    def read_groups(self) -> tuple[Tensor, Tensor, Tensor]:
        """A scale has 8 bits and a step 9, so that a weight is exact in float32."""
        tensors = self.tensors()
        scale = tensors["weight_scale"].to(torch.float32)
        return tensors["weight_packed"].view(torch.uint8).flatten(), scale, _compute_offset(scale, self.bits)


class CompressedTensorsBackend(ErrorFeedback):
    """Codes by error feedback, like `reference-gptq`, with a 16-bit scale a group, in the `pack-quantized` form.

    Without zero points, which at 4 bits buy no more than their bytes. Scales are numbers that float16 and bfloat16 both
    have: an engine reads the same ones whatever it computes in.

    Args:
        group_size: weights of a row that share a scale; halved, down to 32, for a row it does not divide.
        damping: as of `reference-gptq`.
    """

    name: ClassVar[str] = "compressed-tensors"
    bits = (4, 8)
    layer = CompressedIntegers
    largest = torch.finfo(torch.float16).max
    trained = ("weight_scale",)

    def __init__(self, *, group_size: int = 64, damping: float = 0.1):
        if group_size not in GROUP_SIZES:
            raise ValueError(
                f"option 'group_size' of backend 'compressed-tensors' must be one of "
                f"{', '.join(map(str, GROUP_SIZES))}, got {group_size!r}"
            )
        check_damping(damping)
        self.group_size, self.damping = group_size, damping
        self.options = {"group_size": group_size, "damping": damping}

    def unsupported_reason(self, bits: int, out_features: int, in_features: int) -> str | None:
        reason = super().unsupported_reason(bits, out_features, in_features)
        if reason is None and (out_features % WORD_BITS or in_features % WORD_BITS):
            reason = (
                f"{self.name} packs words of {WORD_BITS} weights, got {out_features} x {in_features}: use "
                "reference-gptq, which takes any shape"
            )
        return reason

    def choose_group_size(self, in_features: int) -> int:
        return find_group_size(in_features, self.group_size, WORD_BITS) or WORD_BITS

    def fit(self, rows: Tensor, bits: int, importance: Tensor) -> tuple[Tensor, Tensor]:
        return fit_groups(rows, bits, self.choose_group_size(rows.shape[1]), importance)

    def pack(self, bits: int, codes: Tensor, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
        words = groupwise.pack(codes, bits).view(torch.int32).view(len(codes), -1)  # a row fills whole words
        return {"weight_packed": words, "weight_scale": scale.to(SCALE_DTYPE).contiguous()}

    def finish_tensors(self, bits: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        words = tensors["weight_packed"]
        shape = torch.tensor([len(words), words.shape[1] * WORD_BITS // bits], device=words.device)
        return {**tensors, "weight_shape": shape}

    def describe_tensors(self, bits: int, out_features: int, in_features: int) -> Expected:
        groups = in_features // self.choose_group_size(in_features)
        return {
            "weight_packed": ((out_features, in_features * bits // WORD_BITS), torch.int32),
            "weight_scale": ((out_features, groups), SCALE_DTYPE),
            "weight_shape": ((2,), torch.int64),
        }

    def make_module(self, tensors: dict[str, Tensor], bits: int, **form: Any) -> CompressedIntegers:
        return CompressedIntegers(
            tensors, bits=bits, group_size=self.choose_group_size(form["in_features"]), **form
        )

    def replace_scales(self, module: nn.Module, scales: Scales) -> nn.Module:
        scale = round_to_16_bits(scales.scale).to(SCALE_DTYPE).contiguous()
        return super().replace_scales(module, scales._replace(scale=scale))


def round_to_16_bits(values: Tensor) -> Tensor:
    """The nearest values that float16 and bfloat16 both have, in float32.

    An engine reads scales in the dtype that it computes in, so they have to be the same numbers in either.
    """
    return values.to(torch.bfloat16).to(torch.float16).to(torch.float32)


def fit_groups(weight: Tensor, bits: int, group_size: int, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset of each group.

    A scale may be negative, which puts the one level more that a side has to where the weights reach further.

    Args:
        weight: float32 (out, in); `group_size` divides in.
        importance: (in,), weight of each column's squared error.

    Returns:
        float32 (out, in / group_size) each; scales are values of `round_to_16_bits`.
    """
    # A group whose inputs were never seen still has to be coded: the floor makes its columns equal.
    importance = importance.unflatten(0, (-1, group_size))
    mean = importance.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    scale = _fit_mse(weight.unflatten(1, (-1, group_size)), importance / mean + 1e-6, bits).squeeze(-1)
    return scale, _compute_offset(scale, bits)


def _compute_offset(scale: Tensor, bits: int) -> Tensor:
    return -(2.0 ** (bits - 1)) * scale


def _fit_mse(weight: Tensor, importance: Tensor, bits: int) -> Tensor:
    """Scale (out, groups, 1) of weight (out, groups, size); importance (groups, size)."""
    zero = 2 ** (bits - 1)
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    shares = _SHRINK_FACTORS if bits < _NARROWEST_WHOLE else _SHRINK_FACTORS[:1]
    best_error = torch.full_like(largest, torch.inf)
    best_scale = torch.zeros_like(best_error)
    steps, work = torch.empty_like(weight), torch.empty_like(weight)
    weighted = weight * importance
    for scale in (share * largest / reach for share in shares for reach in (-zero, zero - 1)):
        for refit in range(_REFITS + 1):
            scale = round_to_16_bits(scale)
            torch.div(weight, torch.where(scale == 0, 1.0, scale), out=steps).add_(zero).round_()
            steps.clamp_(0, 2**bits - 1).sub_(zero)
            torch.mul(steps, scale, out=work).sub_(weight)
            error = work.square_().mul_(importance).sum(-1, keepdim=True)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            if refit < _REFITS:
                pull = torch.mul(steps, weighted, out=work).sum(-1, keepdim=True)
                power = torch.mul(steps.square_(), importance, out=work).sum(-1, keepdim=True)
                scale = torch.where(power > 0, pull / power.clamp_min(1e-30), scale)
    return best_scale
