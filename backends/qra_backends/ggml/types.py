"""The block types of llama.cpp: their sizes, where the bits of a code lie, and what decoders look up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qra_backends.storage import ceil_div


@dataclass(frozen=True)
class Plane:
    """Bytes `start` to `stop` of a block, which hold `bits` bits of every code, from bit `at` of it upwards.

    `chunk` bytes hold the lowest bits of so many weights that follow one another, then those of the next `chunk`
    weights in the bits above, and so on.
    """

    start: int
    stop: int
    chunk: int
    bits: int
    at: int = 0


@dataclass(frozen=True)
class GGMLType:
    """One block type.

    Attributes:
        width: nominal bits.
        block: weights of a block; rows are whole blocks.
        block_bytes: bytes of a block.
        group: weights that share a scale.
        planes: where the codes are; empty for types whose codes are vectors of a codebook.
        zero: what is taken from a code before it is multiplied by its scale.
        flip: bits of the stored byte that are the other way round in the code (signed bytes).
        offset: whether a group has an offset beside its scale.
        scale_at: the byte where its 16-bit scale is; if there are offsets, that of these follows it.
        even: whether codes are evenly spaced numbers.
    """

    name: str
    width: int
    block: int
    block_bytes: int
    group: int
    planes: tuple[Plane, ...] = ()
    zero: int = 0
    flip: int = 0
    offset: bool = False
    scale_at: int = 0
    even: bool = True

    @property
    def code_bits(self) -> int:
        return sum(plane.bits for plane in self.planes)

    def bytes(self, out_features: int, in_features: int) -> int:
        """Exact bytes of a weight; a row that is not whole blocks is counted as if its last one were."""
        return out_features * ceil_div(in_features, self.block) * self.block_bytes


_ALL = (
    GGMLType("IQ2_XXS", 2, 256, 66, 32, even=False),
    GGMLType("IQ2_XS", 2, 256, 74, 16, even=False),
    GGMLType("IQ2_S", 2, 256, 82, 16, even=False),
    GGMLType("Q2_K", 2, 256, 84, 16, (Plane(16, 80, 32, 2),), offset=True, scale_at=80),
    GGMLType("IQ3_XXS", 3, 256, 98, 32, even=False),
    GGMLType("IQ3_S", 3, 256, 110, 32, even=False),
    GGMLType(
        "Q3_K", 3, 256, 110, 16, (Plane(32, 96, 32, 2), Plane(0, 32, 32, 1, at=2)), zero=4, scale_at=108
    ),
    GGMLType("IQ4_XS", 4, 256, 136, 32, (Plane(8, 136, 16, 4),), even=False),
    GGMLType("IQ4_NL", 4, 32, 18, 32, (Plane(2, 18, 16, 4),), even=False),
    GGMLType("Q4_0", 4, 32, 18, 32, (Plane(2, 18, 16, 4),), zero=8),
    GGMLType("Q4_K", 4, 256, 144, 32, (Plane(16, 144, 32, 4),), offset=True),
    GGMLType("Q4_1", 4, 32, 20, 32, (Plane(4, 20, 16, 4),), offset=True),
    GGMLType("Q5_0", 5, 32, 22, 32, (Plane(6, 22, 16, 4), Plane(2, 6, 1, 1, at=4)), zero=16),
    GGMLType("Q5_K", 5, 256, 176, 32, (Plane(48, 176, 32, 4), Plane(16, 48, 32, 1, at=4)), offset=True),
    GGMLType("Q5_1", 5, 32, 24, 32, (Plane(8, 24, 16, 4), Plane(4, 8, 1, 1, at=4)), offset=True),
    GGMLType(
        "Q6_K", 6, 256, 210, 16, (Plane(0, 128, 64, 4), Plane(128, 192, 32, 2, at=4)), zero=32, scale_at=208
    ),
    GGMLType("Q8_0", 8, 32, 34, 32, (Plane(2, 34, 32, 8),), zero=128, flip=0x80),
)
TYPES: dict[str, GGMLType] = {kind.name: kind for kind in _ALL}
"""By name, in the order of their widths, then of their bytes."""


def read_float16(blocks: Tensor, at: int = 0) -> Tensor:
    """The float16 at byte `at` of every block, as float32 (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


@lru_cache(maxsize=32)
def load_vectors(name: str, device: torch.device) -> Tensor:
    """The codebook of a type, float32 (vectors, 8) at 2 bits and (vectors, 4) at 3."""
    from gguf import quants

    kind = getattr(quants, name)
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
