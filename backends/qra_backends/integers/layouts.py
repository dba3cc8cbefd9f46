"""How engines lay out codes, scales and zero points: GPTQ's four tensors, and those of compressed-tensors.

Both pack codes into little-endian words of 32 bits, as one stream of bits: GPTQ along the columns of the weight,
compressed-tensors along its rows; zero points along the rows of the output in either.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from qra_backends.reference import bitpack
from qra_backends.storage import ceil_div

WORD = 32


def words_of(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 (out, in) as words int32 (out, ceil(in · bits / 32))."""
    out_features, in_features = codes.shape
    padded = F.pad(codes, (0, -in_features % WORD))
    words = bitpack.pack(padded, bits).view(torch.int32).view(out_features, -1)
    return words[:, : ceil_div(in_features * bits, WORD)].contiguous()


def gptq_tensors(words: Tensor, scale: Tensor, zero: Tensor, bits: int) -> dict[str, Tensor]:
    """GPTQ's four tensors, in its second format, which stores zero points as they are.

    Shapes: qweight int32 (in·bits/32, out), qzeros int32 (groups, out·bits/32), scales float16 (groups, out), g_idx
    int32 (in,).

    Args:
        words: of `words_of`; scale, zero: (out, groups).
    """
    in_features, groups = words.shape[1] * WORD // bits, scale.shape[1]
    return {
        "qweight": words.t().contiguous(),
        "qzeros": _columns(zero, bits).contiguous(),
        "scales": scale.t().to(torch.float16).contiguous(),
        "g_idx": (torch.arange(in_features, device=words.device) // (in_features // groups)).to(torch.int32),
    }


def gptq_stream(tensors: Mapping[str, Tensor]) -> Tensor:
    """The codes of GPTQ's tensors as one stream of bytes, row after row."""
    return tensors["qweight"].t().contiguous().view(torch.uint8).flatten()


def gptq_zeros(tensors: Mapping[str, Tensor], bits: int) -> Tensor:
    """The zero points float32 (out, groups) of GPTQ's tensors."""
    groups, out_features = tensors["scales"].shape
    stream = tensors["qzeros"].contiguous().view(torch.uint8).flatten()
    zeros = bitpack.unpack(stream, bits, groups * out_features).view(groups, out_features)
    return zeros.t().to(torch.float32).contiguous()


def compressed_tensors(
    words: Tensor, scale: Tensor, zero: Tensor | None, bits: int, in_features: int
) -> dict[str, Tensor]:
    """The tensors of compressed-tensors' `pack-quantized` form.

    Shapes: weight_packed int32 (out, in·bits/32), weight_scale (out, groups), weight_zero_point int32 (out·bits/32,
    groups) unless `zero` is None, weight_shape int64 (2,).

    Args:
        words: of `words_of`; scale, in the dtype to store it in, and zero: (out, groups).
    """
    shape = torch.tensor([len(words), in_features], device=words.device)
    tensors = {"weight_packed": words, "weight_scale": scale.contiguous(), "weight_shape": shape}
    return tensors if zero is None else {**tensors, "weight_zero_point": _columns(zero, bits).t().contiguous()}


def compressed_zeros(packed: Tensor, bits: int, out_features: int) -> Tensor:
    """The zero points float32 (out, groups) of weight_zero_point."""
    groups = packed.shape[1]
    stream = packed.t().contiguous().view(torch.uint8).flatten()
    return bitpack.unpack(stream, bits, groups * out_features).view(groups, out_features).t().float().contiguous()


def _columns(zero: Tensor, bits: int) -> Tensor:
    """Zero points (out, groups) in words along the output, int32 (groups, out · bits / 32)."""
    return bitpack.pack(zero.t().contiguous().to(torch.uint8), bits).view(torch.int32).view(zero.shape[1], -1)
