"""Backend `reference`: group-wise asymmetric round-to-nearest in pure PyTorch, really packed.

Memory to quantize: no copy of the whole weight in floats, as rows are worked on in blocks (see `blocks`); a weight of
2048 x 8192 at 4 bits takes 15 MB, 0.22 float32 copies, beside the 9.4 MB of its module, and 8192 x 8192 takes 53 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qra_backends.base import Backend
from qra_backends.reference import groupwise
from qra_backends.storage import Expected, ceil_div, choose_block_rows, count_block_bytes


class ReferenceBackend(Backend):
    """Codes of 2 to 6 or 8 bits without a gap, and 16 bits each of scale and offset for every group of a row.

    Takes any shape: the last group of a row may be shorter.

    Args:
        group_size: weights of a row that share scale and offset.
        ranges: `minmax` spans each group; `mse` clips to the least squared error (from 2 to 4 bits it lowers the
            squared output error of SmolLM2's layers by a quarter to two fifths, at no bytes).
    """

    name: ClassVar[str] = "reference"
    revision: ClassVar[int] = 2
    bits = groupwise.WIDTHS
    side_by_side = True
    layer = groupwise.PackedLinear
    largest = torch.finfo(groupwise.GROUP_DTYPE).max
    trained = ("scale", "offset")

    def __init__(self, *, group_size: int = 64, ranges: str = "minmax"):
        if type(group_size) is not int or group_size < 1:
            raise ValueError(
                f"option 'group_size' of a backend must be a positive integer, got {group_size!r}"
            )
        if ranges not in groupwise.RANGE_METHODS:
            raise ValueError(
                f"option 'ranges' of a backend must be one of {', '.join(groupwise.RANGE_METHODS)}, got {ranges!r}"
            )
        self.group_size, self.ranges = group_size, ranges
        self.options = {"group_size": group_size, "ranges": ranges}

    def count_work_bytes(
        self, levels: Sequence[int], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        stored = max(self.storage(bits).bytes(out_features, in_features) for bits in levels)
        arrays = 5 - (dtype == torch.float32)  # whose rows need no copy
        return stored + count_block_bytes(out_features * in_features, device, arrays)  # unjoined blocks

    def encode(self, weight: Tensor, bits: int, hessian: Tensor | None) -> dict[str, Tensor]:
        blocks = []
        for rows in weight.split(choose_block_rows(weight.shape[1], weight.device)):
            rows = rows.to(torch.float32)
            scale, offset = groupwise.fit_groups(rows, bits, self.group_size, ranges=self.ranges)
            codes = groupwise.encode(rows, scale, offset, bits, self.group_size)
            blocks.append({"codes": groupwise.pack(codes, bits), "scale": scale, "offset": offset})
        return join_blocks(blocks)

    def describe_tensors(self, bits: int, out_features: int, in_features: int) -> Expected:
        groups = (out_features, ceil_div(in_features, self.group_size))
        return {
            "codes": ((ceil_div(out_features * in_features * bits, 8),), torch.uint8),
            "scale": (groups, groupwise.GROUP_DTYPE),
            "offset": (groups, groupwise.GROUP_DTYPE),
        }

    def make_module(self, tensors: dict[str, Tensor], bits: int, **form: Any) -> groupwise.PackedLinear:
        return groupwise.PackedLinear(tensors, bits=bits, group_size=self.group_size, **form)


def join_blocks(blocks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a weight from those of its blocks of rows, all but the last of a multiple of 8 rows."""
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
