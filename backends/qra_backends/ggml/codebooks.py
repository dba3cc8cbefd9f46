"""Types whose codes are vectors of a codebook: IQ2_XXS to IQ3_S. The codebooks are those of the package gguf.

Each function takes uint8 blocks (n, bytes) and gives values float32 (n, 256) and their scales float32 (n, groups).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Tensor], tuple[Tensor, Tensor]]


def _decode_iq2_xxs(blocks: Tensor) -> tuple[Tensor, Tensor]:
    words = _view_as_words(blocks[:, 2:66]).view(-1, 8, 2)  # four vectors of eight, and their signs and scale
    vectors = blocks[:, 2:66].reshape(-1, 8, 8)[..., :4].reshape(len(blocks), 32)
    scale = read_float16(blocks) * (0.5 + ((words[..., 1] >> 28) & 0xF).float()) * 0.25
    return _look_up_vectors("IQ2_XXS", vectors) * _look_up_signs(words[..., 1]), scale


def _decode_iq2_xs(blocks: Tensor) -> tuple[Tensor, Tensor]:
    codes = blocks[:, 2:66].reshape(-1, 32, 2).long()
    codes = codes[..., 0] | (codes[..., 1] << 8)
    signs = _unpack_signs(make_sign_table(blocks.device)[codes >> 9])
    scale = read_float16(blocks) * (0.5 + _unpack_nibbles(blocks[:, 66:74])) * 0.25
    return _look_up_vectors("IQ2_XS", codes & 511) * signs, scale


def _decode_iq2_s(blocks: Tensor) -> tuple[Tensor, Tensor]:
    high = (blocks[:, 66:74, None] >> make_shifts(2, blocks.device)).bitwise_and_(3).reshape(len(blocks), 32)
    codes = blocks[:, 2:34].long() | (high.long() << 8)
    scale = read_float16(blocks) * (0.5 + _unpack_nibbles(blocks[:, 74:82])) * 0.25
    return _look_up_vectors("IQ2_S", codes) * _unpack_signs(blocks[:, 34:66]), scale


def _decode_iq3_xxs(blocks: Tensor) -> tuple[Tensor, Tensor]:
    words = _view_as_words(blocks[:, 66:98])
    scale = read_float16(blocks) * (0.5 + ((words >> 28) & 0xF).float()) * 0.5
    return _look_up_vectors("IQ3_XXS", blocks[:, 2:66]) * _look_up_signs(words), scale


def _decode_iq3_s(blocks: Tensor) -> tuple[Tensor, Tensor]:
    high = (blocks[:, 66:74, None] >> make_shifts(1, blocks.device)).bitwise_and_(1).reshape(len(blocks), 64)
    codes = blocks[:, 2:66].long() | (high.long() << 8)
    scale = read_float16(blocks) * (1 + 2 * _unpack_nibbles(blocks[:, 106:110]))
    return _look_up_vectors("IQ3_S", codes) * _unpack_signs(blocks[:, 74:106]), scale


CODEBOOKS: dict[str, Read] = {
    "IQ2_XXS": _decode_iq2_xxs,
    "IQ2_XS": _decode_iq2_xs,
    "IQ2_S": _decode_iq2_s,
    "IQ3_XXS": _decode_iq3_xxs,
    "IQ3_S": _decode_iq3_s,
}
"""How each type is read."""


def read_float16(blocks: Tensor, at: int = 0) -> Tensor:
    """The float16 at byte `at` of every block, as float32 (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


def _view_as_words(packed: Tensor) -> Tensor:
    """Little-endian 32-bit words, int32 (n, words); the highest bit is the sign, so shifts are masked."""
    return packed.contiguous().view(torch.int32)


def _unpack_nibbles(packed: Tensor) -> Tensor:
    """Low and high four bits of each byte in turn, float32 (n, 2 · bytes)."""
    return (
        (packed[:, :, None] >> make_shifts(4, packed.device))
        .bitwise_and_(0xF)
        .reshape(len(packed), -1)
        .float()
    )


def _look_up_signs(words: Tensor) -> Tensor:
    """Signs of 32 weights from each word's four indices of seven bits: float32 (n, 256)."""
    shifts = torch.arange(0, 28, 7, dtype=torch.int32, device=words.device)
    indices = (words[..., None] >> shifts) & 0x7F
    return _unpack_signs(make_sign_table(words.device)[indices.long()].reshape(len(words), -1))


def _unpack_signs(packed: Tensor) -> Tensor:
    """-1 for each bit that is set, 1 for the others: float32 (n, 8 · bytes)."""
    bits = (packed[..., None] >> make_shifts(1, packed.device)) & 1
    return 1 - 2 * bits.reshape(len(packed), -1).float()


def _look_up_vectors(name: str, codes: Tensor) -> Tensor:
    """The vectors of a codebook, float32 (n, 256)."""
    return load_codebook(name, codes.device)[codes.long()].reshape(len(codes), -1)


@lru_cache(maxsize=32)
def load_codebook(name: str, device: torch.device) -> Tensor:
    """The vectors of a type's codebook, float32 (vectors, 8) or (vectors, 4)."""
    import gguf.quants

    kind: Any = getattr(gguf.quants, name)
    kind.init_grid()
    return torch.from_numpy(kind.grid.reshape(kind.grid_shape).copy()).to(device)


@lru_cache(maxsize=8)
def make_sign_table(device: torch.device) -> Tensor:
    """Signs of eight weights by their index of seven bits, uint8 (128,)."""
    from gguf.quants import IQ2_XXS

    return torch.frombuffer(bytearray(IQ2_XXS.ksigns), dtype=torch.uint8).to(device)


@lru_cache(maxsize=8)
def load_iq4_values(device: torch.device) -> Tensor:
    """The 16 values of IQ4_NL and IQ4_XS, float32."""
    from gguf.quants import IQ4_NL

    return torch.tensor(IQ4_NL.kvalues, dtype=torch.float32, device=device)


@lru_cache(maxsize=32)
def make_shifts(bits: int, device: torch.device) -> Tensor:
    """How far each field of so many bits lies from a byte's lowest bit, uint8 (8 / bits,)."""
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
